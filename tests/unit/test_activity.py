"""Requests and counts that gateway processes share with each other."""

import os
from collections.abc import Iterator

import pytest

from cortex.dashboard.activity import SLOTS, Activity, Ended
from cortex.dashboard.live import describe, measure


@pytest.fixture
def activity() -> Iterator[Activity]:
    made = Activity()
    yield made
    made.close()


def ended(request_id: str = "r", **more: object) -> Ended:
    return Ended(at=1.0, request_id=request_id, principal="p", dialect="d", outcome="ok", seconds=1.0, **more)  # type: ignore[arg-type]


def in_child(does: object) -> None:
    """Run a function in a forked process, as gateway processes are."""
    pid = os.fork()
    if pid == 0:
        try:
            does()  # type: ignore[operator]
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_requests_of_all_processes_come_once_each_in_order(activity: Activity) -> None:
    activity.add(ended("a", model="m", ttft_s=0.1))
    in_child(lambda: activity.add(ended("b")))
    activity.add(ended("c"))
    rows = activity.since(0)
    assert [(r.serial, r.request_id) for r in rows] == [(1, "a"), (2, "b"), (3, "c")]
    assert (rows[0].model, rows[0].ttft_s) == ("m", 0.1)
    assert [r.request_id for r in activity.since(2)] == ["c"]
    assert activity.since(3) == []


def test_only_the_last_requests_are_kept(activity: Activity) -> None:
    for number in range(SLOTS + 5):
        activity.add(ended(str(number)))
    rows = activity.since(0)
    assert len(rows) == SLOTS
    assert (rows[0].request_id, rows[-1].request_id) == ("5", str(SLOTS + 4))


def test_long_names_are_cut_and_hurt_no_neighbour(activity: Activity) -> None:
    activity.add(ended("a"))
    activity.add(ended("b" * 5000, model="\u00e9" * 5000, node="n"))
    activity.add(ended("c"))
    rows = activity.since(0)
    assert [r.request_id[0] for r in rows] == ["a", "b", "c"]
    assert rows[1].request_id.endswith("…")
    assert rows[1].node == "n"


def test_what_does_not_fit_into_a_slot_is_left_out(activity: Activity) -> None:
    wide = "\U0001f600" * 200
    activity.add(Ended(at=1.0, request_id=wide, principal=wide, dialect="d", model=wide, outcome="ok", seconds=1.0))
    activity.add(ended("b"))
    assert [r.request_id for r in activity.since(0)] == ["b"]


def test_a_process_that_died_counts_no_more_and_its_row_is_free(activity: Activity) -> None:
    activity.report(100, 2)
    in_child(lambda: _report_anew(activity))
    assert activity.totals() == {os.getpid(): (100, 2)}
    in_child(lambda: _report_anew(activity))
    assert activity.totals() == {os.getpid(): (100, 2)}


def _report_anew(activity: Activity) -> None:
    activity._row = None
    activity.report(7, 1)
    assert os.getpid() in activity.totals()


def test_a_rate_is_of_the_processes_that_were_there_before() -> None:
    assert measure({1: (100, 1)}, {1: (150, 2), 2: (1000, 3)}, 0.5) == {"tokens_per_s": 100.0, "running": 5}
    assert measure({1: (100, 1)}, {1: (0, 0)}, 1.0) == {"tokens_per_s": 0.0, "running": 0}
    assert measure({}, {}, 0.0) == {"tokens_per_s": 0.0, "running": 0}


def test_a_node_is_shown_with_what_it_holds_and_without_hashes() -> None:
    models = [
        {"id": "a", "replicas": [{"device": "GPU-1"}], "prefixes": ["x" * 64], "profile": "f"},
        {"id": "b", "status": "unloaded"},
        {"id": "c", "queued": 1},
    ]
    state = {"version": "1", "devices": [], "models": models, "aliases": {"x": "a"}, "incarnation": "i"}
    shown = describe({"name": "beast", "state": state})
    assert [m["id"] for m in shown["state"]["models"]] == ["a", "c"]
    assert shown["state"]["models"][0] == {"id": "a", "replicas": [{"device": "GPU-1"}]}
    assert set(shown["state"]) == {"version", "devices", "models"}
    assert describe({"name": "x", "state": None}) == {"name": "x", "state": None}
