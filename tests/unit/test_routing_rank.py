from typing import Any

import pytest

from common.messages import DeviceState, ModelState, ReplicaState
from cortex.fleet.routing import rank
from cortex.fleet.view import LinkState, Node
from tests.support.fake_neuron import model_state, node_state


def node(name: str, *models: ModelState, memory_mb: int = 1000, **changes: Any) -> Node:
    """Return a neuron that is up."""
    made = Node(name)
    made.link = LinkState.UP
    device = DeviceState(uuid=f"{name}-0", name="virtual", kind="cpu", state="ready", memory_mb=memory_mb)
    made.apply(node_state(*models, devices=[device], **changes))
    return made


def order(*nodes: Node, has_profile: bool = True) -> list[str]:
    """Return the names, best first."""
    return [choice.node for choice in rank(nodes, "m", has_profile=has_profile)]


def test_loaded_before_coming_before_feasible_before_unknown_before_failed() -> None:
    nodes = [
        node("failed", model_state("m", status="failed", feasible=False, reason="broken", replicas=[])),
        node("unknown"),
        node("feasible", model_state("m", status="unloaded", replicas=[])),
        node("coming", model_state("m", status="loading")),
        node("loaded", model_state("m", running=9, queued=9)),
    ]
    assert order(*nodes) == ["loaded", "coming", "feasible", "unknown", "failed"]


def test_only_a_model_that_nobody_there_serves_has_to_be_loaded() -> None:
    nodes = [node("a", model_state("m")), node("b", model_state("m", status="recovering")), node("c")]
    assert [(c.node, c.needs_load) for c in rank(nodes, "m", has_profile=True)] == [
        ("a", False),
        ("b", False),
        ("c", True),
    ]


def test_fewest_jobs_relative_to_slots_wins() -> None:
    two = [ReplicaState(device="d0", status="loaded"), ReplicaState(device="d1", status="loaded")]
    nodes = [node("one", model_state("m", running=3)), node("two", model_state("m", running=4, replicas=two))]
    assert order(*nodes) == ["two", "one"]


def test_what_was_sent_since_the_last_push_counts() -> None:
    a, b = node("a", model_state("m")), node("b", model_state("m"))
    best, other = order(a, b)
    {"a": a, "b": b}[best].note_sent("m", 1)
    assert order(a, b) == [other, best]


@pytest.mark.parametrize("link", [LinkState.DOWN, LinkState.SUSPECT, LinkState.REFUSED])
def test_a_neuron_that_is_not_up_gets_no_new_work(link: LinkState) -> None:
    silent = node("silent", model_state("m"))
    silent.link = link
    assert order(silent) == []


def test_draining_nodes_and_models_are_passed_over() -> None:
    nodes = [node("a", model_state("m"), state="draining"), node("b", model_state("m", draining=True)), node("c")]
    assert order(*nodes) == ["c"]


def test_most_free_memory_gets_a_model_that_is_nowhere() -> None:
    nodes = [node("small", memory_mb=500), node("big", memory_mb=5000), node("middle", memory_mb=2000)]
    assert order(*nodes) == ["big", "middle", "small"]


def test_without_a_profile_only_neurons_that_know_the_model_are_asked() -> None:
    nodes = [node("a"), node("b", model_state("m", status="unloaded", replicas=[]))]
    assert order(*nodes, has_profile=False) == ["b"]


def test_ties_are_broken_alike_whatever_the_order_of_the_nodes() -> None:
    nodes = [node(name, model_state("m")) for name in ("a", "b", "c", "d")]
    assert order(*nodes) == order(*reversed(nodes))
