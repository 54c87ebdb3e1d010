"""Which replica gets a request: what ranks first, and that every gateway process ranks alike."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import Chat, DeviceState, ModelState, ReplicaState
from cortex.fleet import prefix
from cortex.fleet.routing import rank
from cortex.fleet.view import LinkState, Node
from tests.support.fake_neuron import model_state, node_state

TALK = ["base", "turn-1", "turn-2", "turn-3"]


def node(name: str, *models: ModelState, memory_mb: int = 1000, **changes: Any) -> Node:
    """Return a neuron that is up."""
    made = Node(name)
    made.link = LinkState.UP
    device = DeviceState(uuid=f"{name}-0", name="virtual", kind="cpu", state="ready", memory_mb=memory_mb)
    made.apply(node_state(*models, devices=[device], **changes))
    return made


def order(*nodes: Node, chain: list[str] | None = None) -> list[str]:
    """Return the names, best first."""
    return [choice.node for choice in rank(nodes, "m", chain or [])]


def test_loaded_before_coming_and_nobody_else() -> None:
    nodes = [
        node("failed", model_state("m", status="failed", feasible=False, reason="broken", replicas=[])),
        node("stranger"),
        node("idle", model_state("m", status="unloaded", replicas=[])),
        node("coming", model_state("m", status="loading")),
        node("loaded", model_state("m", running=9, queued=9)),
    ]
    assert order(*nodes) == ["loaded", "coming"]
    assert [c.is_loaded for c in rank(nodes, "m")] == [True, False]


def test_a_neuron_whose_jobs_wait_for_the_model_will_load_it() -> None:
    makes_room = model_state("m", status="unloaded", replicas=[], queued=1)
    assert order(node("a"), node("b", makes_room)) == ["b"]


def test_fewest_jobs_relative_to_slots_wins() -> None:
    two = [ReplicaState(device="d0", status="loaded"), ReplicaState(device="d1", status="loaded")]
    nodes = [node("one", model_state("m", running=3)), node("two", model_state("m", running=4, replicas=two))]
    assert order(*nodes) == ["two", "one"]


def test_what_was_sent_since_the_last_push_counts() -> None:
    a, b = node("a", model_state("m")), node("b", model_state("m"))
    best, other = order(a, b)
    {"a": a, "b": b}[best].note_sent("m", 1)
    assert order(a, b) == [other, best]


def test_the_expected_wait_counts_measured_speeds() -> None:
    slow = model_state("m", running=4, queued=1, service_ms=10000)
    fast = model_state("m", running=4, queued=4, service_ms=1000)
    assert order(node("slow", slow), node("fast", fast)) == ["fast", "slow"]


def test_a_much_slower_replica_is_used_when_the_fast_one_is_full() -> None:
    slow, fast = model_state("m", service_ms=4000), model_state("m", running=3, service_ms=1000)
    assert order(node("slow", slow), node("fast", fast)) == ["fast", "slow"]
    assert order(node("slow", slow), node("fast", model_state("m", running=4, service_ms=1000))) == ["slow", "fast"]


def test_the_replica_that_holds_the_conversation_wins_over_an_idle_one() -> None:
    holder = node("holder", model_state("m", running=3, prefixes=TALK[:3]))
    assert order(holder, node("idle", model_state("m")), chain=TALK) == ["holder", "idle"]


def test_a_shared_system_prompt_alone_draws_nobody() -> None:
    holder = node("holder", model_state("m", running=1, prefixes=["base", "other"]))
    assert order(holder, node("idle", model_state("m")), chain=TALK) == ["idle", "holder"]


def test_a_holder_with_more_than_its_share_of_the_load_loses_the_conversation() -> None:
    holder = node("holder", model_state("m", running=4, queued=4, prefixes=TALK[:3]))
    assert order(holder, node("idle", model_state("m")), chain=TALK) == ["idle", "holder"]
    busy = node("busy", model_state("m", running=4, queued=4))
    assert order(holder, busy, chain=TALK) == ["holder", "busy"]


def test_new_conversations_go_where_fewer_are_resident() -> None:
    full = node("full", model_state("m", prefixes=["x1", "x2"]))
    assert order(full, node("fresh", model_state("m")), chain=TALK) == ["fresh", "full"]


@pytest.mark.parametrize("link", [LinkState.DOWN, LinkState.SUSPECT, LinkState.REFUSED])
def test_a_neuron_that_is_not_up_gets_no_new_work(link: LinkState) -> None:
    silent = node("silent", model_state("m"))
    silent.link = link
    assert order(silent) == []


def test_draining_nodes_and_models_are_passed_over() -> None:
    nodes = [node("a", model_state("m"), state="draining"), node("b", model_state("m", draining=True))]
    assert order(*nodes) == []


states = st.builds(
    lambda status, running, queued, prefixes, service_ms: model_state(
        "m", status=status, running=running, queued=queued, prefixes=prefixes, service_ms=service_ms
    ),
    st.sampled_from(["loaded", "loading", "recovering", "unloading", "unloaded", "failed"]),
    st.integers(0, 6),
    st.integers(0, 6),
    st.lists(st.sampled_from(TALK), unique=True),
    st.none() | st.integers(100, 10_000),
)


@given(st.lists(states, max_size=6), st.randoms(), st.integers(0, 4))
def test_the_order_is_the_same_whatever_the_order_of_the_nodes(
    fleet: list[ModelState], random: Any, turns: int
) -> None:
    nodes = [node(f"n{number}", state) for number, state in enumerate(fleet)]
    expected = rank(nodes, "m", TALK[:turns])
    random.shuffle(nodes)
    assert rank(nodes, "m", TALK[:turns]) == expected
    assert len({c.node for c in expected}) == len(expected)
    loaded_first = [c.is_loaded for c in expected]
    assert loaded_first == sorted(loaded_first, reverse=True)


@given(st.lists(st.integers(0, 15), min_size=50, max_size=120))
def test_growing_conversations_stay_with_their_replica_while_load_stays_even(turns: list[int]) -> None:
    """Sixteen conversations, two replicas, one request at a time: every later turn reaches the replica that has it."""
    held: dict[str, list[str]] = {"a": [], "b": []}
    home: dict[int, str] = {}
    grown: dict[int, int] = {}
    for talk in [*range(16), *turns]:
        grown[talk] = grown.get(talk, 0) + 1
        chain = ["base", *(f"{talk}.{step}" for step in range(2 * grown[talk] - 1))]
        nodes = [node(name, model_state("m", prefixes=links)) for name, links in held.items()]
        chosen = order(*nodes, chain=chain)[0]
        assert home.setdefault(talk, chosen) == chosen
        held[chosen] = [link for link in held[chosen] if link not in chain] + chain[-4:]
    assert sorted(list(home.values()).count(name) for name in held) == [8, 8]


def test_routing_uses_the_chain_that_the_prompt_itself_gives() -> None:
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    later = [*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more"}]
    holder = node("holder", model_state("m", running=2, prefixes=prefix.chain(Chat(messages=first))))
    assert order(holder, node("idle", model_state("m")), chain=prefix.chain(Chat(messages=later)))[0] == "holder"
