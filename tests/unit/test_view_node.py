from hypothesis import given
from hypothesis import strategies as st

from common.messages import NodeState
from cortex.fleet.view import Applied, Node
from tests.support.fake_neuron import model_state, node_state


def history() -> list[NodeState]:
    """Return a full state and the partial ones that follow it."""
    return [
        node_state(model_state("a"), model_state("b", status="unloaded"), seq=1),
        node_state(model_state("b", status="loading"), seq=2, full=False, devices=[]),
        node_state(seq=3, full=False, devices=[], gone=["a"]),
        node_state(model_state("b"), seq=4, full=False, devices=[]),
    ]


def test_partial_states_in_order_change_only_what_they_name() -> None:
    node = Node("beast")
    applied = [node.apply(state) for state in history()]
    assert applied == [Applied.FIRST, Applied.NEXT, Applied.NEXT, Applied.NEXT]
    assert {m: s.status for m, s in node.models.items()} == {"b": "loaded"}
    assert list(node.devices) == ["dev-0"]


def test_a_partial_state_before_any_full_one_asks_for_one() -> None:
    node = Node("beast")
    assert node.apply(history()[1]) is Applied.GAP
    assert not node.is_known


def test_a_missed_state_asks_for_a_full_one_and_changes_nothing() -> None:
    node = Node("beast")
    first, _, third, _ = history()
    node.apply(first)
    assert node.apply(third) is Applied.GAP
    assert set(node.models) == {"a", "b"}


def test_another_life_is_told_from_the_same_one() -> None:
    node = Node("beast")
    node.apply(node_state(seq=7))
    assert node.apply(node_state(seq=1, incarnation="life-2")) is Applied.REBORN
    assert node.apply(node_state(seq=2, incarnation="life-2")) is Applied.NEXT


def test_a_partial_state_of_another_life_asks_for_a_full_one() -> None:
    node = Node("beast")
    node.apply(node_state(seq=7))
    assert node.apply(node_state(seq=8, full=False, incarnation="life-2")) is Applied.GAP


@given(st.lists(st.integers(0, 3), max_size=12))
def test_late_lost_and_repeated_states_never_make_a_wrong_view(order: list[int]) -> None:
    states = history()
    truth, node = Node("truth"), Node("beast")
    views = []
    for state in states:
        truth.apply(state)
        views.append(dict(truth.models))
    known = -1
    for index in order:
        applied = node.apply(states[index])
        if index == 0 and known <= 0:
            assert applied in (Applied.FIRST, Applied.NEXT)
            known = 0
        elif known >= 0 and index == known + 1:
            assert applied is Applied.NEXT
            known = index
        else:
            assert applied in (Applied.LATE, Applied.GAP)
        assert dict(node.models) == ({} if known < 0 else views[known])


def test_jobs_sent_count_until_the_neuron_tells_of_the_model() -> None:
    node = Node("beast")
    node.apply(history()[0])
    node.note_sent("b", 2)
    node.note_sent("b", 1)
    assert node.sent("b") == 3
    node.apply(history()[1])
    assert node.sent("b") == 0


def test_snapshot_is_the_whole_of_full_and_partial_states() -> None:
    node = Node("beast")
    for state in history():
        node.apply(state)
    snapshot = node.snapshot()
    assert snapshot is not None
    assert (snapshot.full, snapshot.seq, [m.id for m in snapshot.models]) == (True, 4, ["b"])
