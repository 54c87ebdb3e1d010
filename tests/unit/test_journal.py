"""What has happened on a host, and in the fleet, as operators are told of it."""

from typing import Any

from common.errors import Code
from common.messages import CancelJobs, Done, EventsReply, Failed, LifecycleEvent, NodeState, ReadEvents, Refused
from cortex.fleet.history import KEPT, History
from neuron.supervisor import journal
from neuron.supervisor.instructions import Say
from neuron.supervisor.journal import Journal
from tests.support.drive import Drive, job


def read(drive: Drive, since: int = 0) -> list[LifecycleEvent]:
    """Ask as neuronctl does."""
    drive.peer_says(ReadEvents(request="q", since=since), "ctl")
    reply = drive.told["ctl"][-1]
    assert isinstance(reply, EventsReply)
    assert reply.incarnation == drive.machine.host.incarnation
    return reply.events


def test_a_line_becomes_an_event_with_subject_and_reason() -> None:
    kept = Journal()
    assert kept.note(Say("info", "model unloaded", {"model": "m", "device": "GPU-1"}), 1.0)
    assert kept.note(Say("warning", "worker ended", {"device": "GPU-1", "cause": "signal SIGSEGV"}), 2.0)
    assert kept.note(Say("info", "worker ready -> killing", {"name": "GPU-1", "pid": 7, "because": "stop"}), 3.0)
    assert kept.note(Say("info", "prep starting -> ready", {"name": "prep", "because": "hello"}), 3.0)
    assert not kept.note(Say("debug", "noise"), 3.0)
    model, died, moved, prep = kept.since(0, 4.0)
    assert (model.cursor, model.subject, model.model, model.device, model.age_ms) == (1, "model", "m", "GPU-1", 3000)
    assert (died.subject, died.level, died.reason) == ("device", "warning", "signal SIGSEGV")
    assert (moved.subject, moved.device, moved.reason, moved.details) == ("device", "GPU-1", "stop", {"pid": "7"})
    assert prep.subject == "helper"


def test_a_cursor_gives_what_came_after_it_and_only_what_is_remembered() -> None:
    kept = Journal()
    for number in range(journal.KEPT + 10):
        kept.note(Say("info", f"line {number}"), 0.0)
    assert [e.cursor for e in kept.since(kept.cursor - 2, 0.0)] == [kept.cursor - 1, kept.cursor]
    assert kept.since(kept.cursor, 0.0) == []
    assert kept.since(kept.cursor + 5, 0.0) == []
    assert len(kept.since(0, 0.0)) == journal.KEPT
    assert len(kept.latest(0.0)) == journal.SHOWN


def test_a_workers_death_and_return_are_told_to_neuronctl_and_to_gateways_once() -> None:
    drive = Drive().start().connect().connect("ctl", "admin")
    drive.submit(job("a"))
    known = read(drive)[-1].cursor
    drive.die("CPU-0", "signal SIGKILL")
    drive.pass_time(1.0)
    news = read(drive, known)
    died = next(e for e in news if e.what == "worker ended")
    assert (died.device, died.reason, died.level) == ("CPU-0", "signal SIGKILL", "warning")
    assert any(e.what == "worker starting -> ready" for e in news)
    assert any((e.what, e.model) == ("model loaded", "m") for e in news)
    drive.pass_time(25.0)
    pushed = [e.cursor for s in drive.told_of(NodeState) if not s.full for e in s.events]
    assert pushed == sorted(set(pushed))
    assert {e.cursor for e in news} <= set(pushed)


def test_a_cancelled_request_ends_with_an_error_and_frees_its_slot() -> None:
    drive = Drive().start().connect().connect("ctl", "admin")
    drive.submit(job("a"), job("b"), job("c"))
    waiting = next(name for name in "abc" if name not in drive.tasks)
    running = next(iter(drive.tasks))
    drive.peer_says(CancelJobs(request="q", target=running), "ctl")
    assert isinstance(drive.told["ctl"][-1], Done)
    failed = [i for m in drive.told_of(Failed) for i in m.items]
    assert [(i.job, i.code, i.retriable) for i in failed] == [(running, Code.ABORTED, False)]
    assert waiting in drive.tasks
    drive.check()
    drive.peer_says(CancelJobs(request="q", target="r"), "ctl")
    assert len(drive.ends()) == 3
    drive.peer_says(CancelJobs(request="q", target="r"), "ctl")
    last = drive.told["ctl"][-1]
    assert isinstance(last, Refused)
    assert last.code is Code.NOT_FOUND


def _state(incarnation: str, *cursors: int, **more: Any) -> NodeState:
    events = [LifecycleEvent(cursor=c, age_ms=500, level="info", subject="node", what=f"{c}") for c in cursors]
    return NodeState(incarnation=incarnation, seq=1, full=True, name="n", version="1", events=events, **more)


def test_the_gateway_takes_each_event_once_and_knows_a_restarted_neuron() -> None:
    history = History(lambda: 1000.0)
    history.learn("beast", _state("x", 1, 2))
    history.learn("beast", _state("x", 1, 2, 3))
    history.learn("benjy", _state("y", 1))
    history.learn("beast", _state("z", 1))
    history.note("beast", "warning", "neuron is suspect", "silent")
    assert [(h.node, h.what) for h in history.since(0)] == [
        ("beast", "1"), ("beast", "2"), ("beast", "3"), ("benjy", "1"), ("beast", "1"), ("beast", "neuron is suspect")
    ]  # fmt: skip
    assert [h.serial for h in history.since(4)] == [5, 6]
    assert history.since(0)[0].at == 999.5
    for _ in range(KEPT):
        history.note("beast", "info", "x")
    assert len(history.since(0)) == KEPT
