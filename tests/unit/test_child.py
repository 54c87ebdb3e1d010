"""The life of a child process, row by row of its table."""

import itertools

import pytest

from neuron.settings import RestartSettings, WatchdogSettings
from neuron.supervisor.child import Child, Happening, UndefinedTransition
from neuron.supervisor.instructions import Kill, SetTimer, Spawn
from neuron.supervisor.policy import RestartPolicy
from neuron.supervisor.states import State


def make_child(*, holds: bool = False, quarantine_after: int = 3) -> Child:
    ids = (f"life-{i}" for i in itertools.count(1))
    settings = RestartSettings(backoff_s=1.0, backoff_max_s=8.0, quarantine_after=quarantine_after, cool_down_s=60.0)
    return Child(
        "worker", "CPU-0", policy=RestartPolicy.of(settings), watchdog=WatchdogSettings(),
        new_incarnation=lambda: next(ids), idle_limit_s=10.0, holds_device_memory=holds,
    )  # fmt: skip


def state_of(child: Child) -> State:
    """Read the state anew each time, which the type checker would otherwise take as unchanged."""
    return child.state


def ready(child: Child, now: float = 0.0) -> Child:
    child.handle("start", now)
    child.handle("hello", now)
    return child


def test_a_start_spawns_a_new_incarnation() -> None:
    child = make_child()
    instructions, outcome = child.handle("start", 0.0)
    assert Spawn("worker", "CPU-0", "life-1") in instructions
    assert (child.state, outcome) == (State.STARTING, None)


def test_the_first_death_after_work_is_restarted_at_once() -> None:
    child = ready(make_child())
    child.note_progress(1.0, steps=5, phase="decode")
    instructions, outcome = child.handle("exited", 2.0, detail="signal SIGKILL")
    assert outcome == "died"
    assert Spawn("worker", "CPU-0", "life-2") in instructions
    assert (child.state, child.restarts) == (State.STARTING, 1)


def test_deaths_without_a_completed_step_back_off_and_end_in_quarantine() -> None:
    child = make_child()
    child.handle("start", 0.0)
    child.handle("exited", 1.0)
    assert state_of(child) is State.STARTING
    instructions, _ = child.handle("exited", 2.0)
    assert state_of(child) is State.BACKOFF
    assert SetTimer(child.timer, 3.0) in instructions
    child.handle("timer", 3.0)
    instructions, outcome = child.handle("exited", 4.0, detail="status 1")
    assert (child.state, outcome) == (State.QUARANTINED, "quarantined")
    assert "3 deaths in a row" in (child.reason or "")
    assert SetTimer(child.timer, 64.0) in instructions


def test_a_completed_step_forgets_earlier_deaths() -> None:
    child = make_child()
    child.handle("start", 0.0)
    child.handle("exited", 1.0)
    child.handle("exited", 2.0)
    child.handle("timer", 3.0)
    child.handle("hello", 3.1)
    child.note_progress(3.2, steps=1)
    child.handle("exited", 4.0)
    assert state_of(child) is State.STARTING


def test_the_cool_down_gives_one_try_and_an_admin_pardons() -> None:
    child = make_child(quarantine_after=1)
    child.handle("start", 0.0)
    child.handle("exited", 1.0)
    assert state_of(child) is State.QUARANTINED
    child.handle("timer", 61.0)
    assert state_of(child) is State.STARTING
    child.handle("exited", 62.0)
    assert state_of(child) is State.QUARANTINED
    child.handle("restart", 63.0)
    assert state_of(child) is State.STARTING


def test_a_stall_is_terminated_then_killed_and_counts_as_a_death() -> None:
    child = ready(make_child())
    child.note_progress(1.0, steps=1, phase="decode")
    assert child.stalled_for(61.0) is None
    assert child.stalled_for(62.0) == pytest.approx(61.0)
    instructions, _ = child.handle("stalled", 62.0, detail="no progress")
    assert Kill("life-1", hard=False) in instructions
    instructions, _ = child.handle("timer", 64.0)
    assert instructions == [Kill("life-1", hard=True), SetTimer(child.timer, 69.0)]
    _, outcome = child.handle("exited", 64.1)
    assert outcome == "died"
    assert state_of(child) is State.STARTING


def test_at_work_only_steps_are_progress_however_often_the_loop_comes_round() -> None:
    child = ready(make_child())
    child.note_pulse(1.0, 0, "prefill")
    for second in range(2, 200):  # a prompt of minutes, a step every second
        child.note_pulse(float(second), second, "prefill")
        assert child.stalled_for(second + 0.9) is None
    for second in range(200, 262):  # the loop turns, and nothing comes of it
        child.note_pulse(float(second), 199, "prefill")
    assert child.stalled_for(261.0) is not None


def test_a_process_that_survives_sigkill_is_stuck_until_it_is_gone() -> None:
    child = ready(make_child())
    child.handle("restart", 1.0)
    child.handle("timer", 3.0)
    assert not child.is_stuck
    _, outcome = child.handle("timer", 8.0)
    assert (outcome, child.is_stuck) == ("stuck", True)
    assert "cannot be killed" in (child.reason or "")
    _, outcome = child.handle("timer", 13.0)
    assert outcome is None
    child.handle("exited", 100.0)
    assert (state_of(child), child.is_stuck) == (State.STARTING, False)


def test_an_asked_stop_is_no_death() -> None:
    child = ready(make_child())
    child.handle("stop", 1.0)
    _, outcome = child.handle("exited", 1.1)
    assert (outcome, child.state, child.restarts) == ("ended", State.STOPPED, 0)


def test_a_restart_brings_a_new_life_without_backoff() -> None:
    child = ready(make_child())
    child.handle("restart", 1.0)
    instructions, outcome = child.handle("exited", 1.1)
    assert outcome == "ended"
    assert Spawn("worker", "CPU-0", "life-2") in instructions


def test_device_memory_must_be_seen_free_before_the_next_life() -> None:
    child = ready(make_child(holds=True))
    instructions, _ = child.handle("exited", 1.0)
    assert state_of(child) is State.RELEASING
    assert not any(isinstance(i, Spawn) for i in instructions)
    instructions, _ = child.handle("memory-free", 1.5)
    assert any(isinstance(i, Spawn) for i in instructions)


def test_memory_that_is_never_released_quarantines() -> None:
    child = ready(make_child(holds=True))
    child.handle("exited", 1.0)
    _, outcome = child.handle("timer", 21.0)
    assert (outcome, child.state) == ("quarantined", State.QUARANTINED)
    assert "memory was not released" in (child.reason or "")


def test_a_drained_worker_ends_when_idle_and_comes_back_with_undrain() -> None:
    child = ready(make_child())
    child.handle("drain", 1.0)
    assert state_of(child) is State.DRAINING
    child.handle("undrain", 1.5)
    assert state_of(child) is State.READY
    child.handle("drain", 2.0)
    child.handle("idle", 3.0)
    child.handle("exited", 3.1)
    assert state_of(child) is State.STOPPED
    child.handle("undrain", 4.0)
    assert state_of(child) is State.STARTING


def test_an_undefined_pair_raises_with_the_story() -> None:
    child = ready(make_child())
    with pytest.raises(UndefinedTransition, match=r"no row for \(ready, memory-free\).*starting hello"):
        child.handle("memory-free", 1.0)


@pytest.mark.parametrize(("deaths", "delay"), [(0, 0.0), (1, 0.0), (2, 1.0), (3, 2.0), (4, 4.0), (6, 8.0), (9, None)])
def test_the_backoff_doubles_up_to_its_cap(deaths: int, delay: float | None) -> None:
    assert RestartPolicy(1.0, 8.0, 9, 60.0).delay_s(deaths) == delay


@pytest.mark.parametrize("what", ["drain", "undrain", "stop", "restart", "condemn"])
@pytest.mark.parametrize("state", list(State))
def test_what_an_admin_or_the_driver_may_want_at_any_time_is_defined_in_every_state(
    state: State, what: Happening
) -> None:
    child = make_child()
    child.state = state
    child.handle(what, 1.0)
