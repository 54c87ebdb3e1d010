"""The life of one child process as a table (state, what happened) → transition. Pure.

A pair that is not in the table is a programmer's error. In tests it raises; in production it is said with the child's
story, and that child is killed: the daemon lives.
"""

from collections import deque
from collections.abc import Callable
from typing import ClassVar, Literal

from neuron.settings import WatchdogSettings
from neuron.supervisor.instructions import CancelTimer, Instruction, Kill, Say, SetTimer, Spawn
from neuron.supervisor.policy import RestartPolicy
from neuron.supervisor.states import ALIVE, State

Happening = Literal[
    "start",
    "hello",
    "drain",
    "undrain",
    "idle",
    "rest",
    "stop",
    "condemn",
    "restart",
    "stalled",
    "exited",
    "memory-free",
    "timer",
]
Outcome = Literal["came-up", "died", "ended", "quarantined"]
"""What the owner must react to: `died` is an exit nobody asked for, `ended` one that was asked for."""


class UndefinedTransition(AssertionError):
    """The table has no row for what happened; the text is the child's story."""


class Child:
    """One worker, the prep process, or the probe."""

    def __init__(
        self,
        role: Literal["worker", "prep", "probe"],
        name: str,
        *,
        policy: RestartPolicy,
        watchdog: WatchdogSettings,
        new_incarnation: Callable[[], str],
        idle_limit_s: float,
        holds_device_memory: bool = False,
    ) -> None:
        """`idle_limit_s`: how long it may be silent while it has nothing to do."""
        self.role = role
        self.name = name
        self.state = State.STOPPED
        self.incarnation = ""
        """Of the life in progress or the last one."""
        self.pid: int | None = None
        """Of the life in progress or the last one."""
        self.restarts = 0
        """Deaths nobody asked for, since the daemon's start."""
        self.reason: str | None = None
        """Why it does not serve."""
        self.steps = 0
        """Completed by this life, as it says itself."""
        self.cycles = 0
        """Models loaded by this life."""
        self.phase = "starting"
        self.seen_at = 0.0
        """Last sign of progress, monotonic seconds."""
        self.exited_at = 0.0
        self._policy = policy
        self._watchdog = watchdog
        self._new_incarnation = new_incarnation
        self._idle_limit_s = idle_limit_s
        self._holds_device_memory = holds_device_memory
        self._deaths_in_row = 0
        self._wanted = False
        """Whether there shall be a process once the present one is gone."""
        self._asked_to_end = False
        self._rests = False
        """Whether it is to be idle once the present process is gone."""
        self._story: deque[str] = deque(maxlen=20)
        self._out: list[Instruction] = []
        self._outcome: Outcome | None = None

    @property
    def timer(self) -> str:
        """Key of this child's one timer."""
        return f"child:{self.role}:{self.name}"

    @property
    def is_alive(self) -> bool:
        """Whether there is a process."""
        return self.state in ALIVE

    @property
    def is_resting(self) -> bool:
        """Whether it has no process, or soon none, for want of something to do."""
        return self._rests and not self._wanted

    def handle(self, what: Happening, now: float, *, detail: str = "") -> tuple[list[Instruction], Outcome | None]:
        """Apply what happened; return instructions and what the owner must react to.

        Raises UndefinedTransition for a pair the table does not have.
        """
        self._out, self._outcome = [], None
        before = self.state
        transition = self._TABLE.get((self.state, what))
        self._story.append(f"{now:.3f} {before} {what} {detail}".rstrip())
        if transition is None:
            raise UndefinedTransition(f"{self.role} {self.name}: no row for ({before}, {what}); story: {self.story()}")
        transition(self, now, detail)
        if self.state is not before:
            self._say("info", f"{self.role} {before} -> {self.state}", because=detail or what)
        return self._out, self._outcome

    def note_progress(self, now: float, *, steps: int | None = None, phase: str | None = None) -> None:
        """Record a sign of progress of the process itself."""
        self.seen_at = now
        if phase is not None:
            self.phase = phase
        if steps is not None:
            self.steps = steps
            if steps > 0:
                self._deaths_in_row = 0

    def stalled_for(self, now: float) -> float | None:
        """Return the seconds without progress if they exceed the phase's limit, else None."""
        if self.state not in (State.STARTING, State.READY, State.DRAINING):
            return None
        limits = {
            "starting": self._watchdog.starting_s,
            "loading": self._watchdog.loading_s,
            "warming": self._watchdog.warming_s,
            "prefill": self._watchdog.step_s,
            "decode": self._watchdog.step_s,
        }
        silence = now - self.seen_at
        return silence if silence > limits.get(self.phase, self._idle_limit_s) else None

    def story(self) -> str:
        """Return the last things that happened to it."""
        return "; ".join(self._story)

    def kill_undefined(self, now: float) -> list[Instruction]:
        """End a process whose state makes no sense; it is restarted by the ordinary path."""
        if not self.is_alive:
            return []
        self.state = State.KILLING
        return [Kill(self.incarnation, hard=True)]

    def _spawn(self, now: float, detail: str) -> None:
        self.state = State.STARTING
        self.incarnation = self._new_incarnation()
        self.pid, self.steps, self.phase, self.seen_at, self.reason = None, 0, "starting", now, None
        self.cycles = 0
        self._wanted, self._asked_to_end, self._rests = True, False, False
        self._out += [CancelTimer(self.timer), Spawn(self.role, self.name, self.incarnation)]

    def _come_up(self, now: float, detail: str) -> None:
        self.state, self.phase, self.seen_at = State.READY, "idle", now
        self._outcome = "came-up"

    def _drain(self, now: float, detail: str) -> None:
        self.state = State.DRAINING

    def _undrain(self, now: float, detail: str) -> None:
        self.state = State.READY

    def _end(self, now: float, detail: str) -> None:
        self._wanted, self._asked_to_end, self._rests = False, True, False
        self._terminate(now)

    def _end_and_rest(self, now: float, detail: str) -> None:
        self._end(now, detail)
        self._rests = True

    def _end_and_restart(self, now: float, detail: str) -> None:
        self._asked_to_end = True
        self._terminate(now)

    def _kill_stalled(self, now: float, detail: str) -> None:
        self.reason = detail
        self._say("error", f"{self.role} makes no progress; killing it", why=detail)
        self._terminate(now)

    def _terminate(self, now: float) -> None:
        self.state = State.KILLING
        self._out += [Kill(self.incarnation, hard=False), SetTimer(self.timer, now + self._watchdog.term_s)]

    def _kill(self, now: float, detail: str) -> None:
        self._out.append(Kill(self.incarnation, hard=True))

    def _let_go(self, now: float, detail: str) -> None:
        """Stop wanting a process whose end is under way."""
        self._wanted, self._asked_to_end, self._rests = False, True, False

    def _want_again(self, now: float, detail: str) -> None:
        self._wanted = True

    def _exit(self, now: float, detail: str) -> None:
        self.exited_at = now
        if self._asked_to_end:
            self._outcome = "ended"
        else:
            self.restarts += 1
            self.reason = self.reason or f"died: {detail}"
            self._deaths_in_row = self._deaths_in_row + 1 if self.steps == 0 or self.state is State.KILLING else 1
            self._outcome = "died"
        self.state = State.RELEASING
        if self._holds_device_memory:
            self._out.append(SetTimer(self.timer, now + self._watchdog.release_s))
        else:
            self._release(now, detail)

    def _release(self, now: float, detail: str) -> None:
        self._out.append(CancelTimer(self.timer))
        if not self._wanted:
            self.state, self.reason = (State.IDLE if self._rests else State.STOPPED), None
            return
        delay_s = 0.0 if self._asked_to_end else self._policy.delay_s(self._deaths_in_row)
        if delay_s is None:
            self._quarantine(now, f"{self._deaths_in_row} deaths in a row, the last: {self.reason}")
        elif delay_s == 0.0:
            self._spawn(now, detail)
        else:
            self.state = State.BACKOFF
            self._out.append(SetTimer(self.timer, now + delay_s))

    def _keep_memory_quarantined(self, now: float, detail: str) -> None:
        self._quarantine(now, f"its memory was not released within {self._watchdog.release_s:g} s of its exit")

    def _quarantine(self, now: float, reason: str) -> None:
        self.state, self.reason, self._outcome = State.QUARANTINED, reason, "quarantined"
        self._out.append(SetTimer(self.timer, now + self._policy.cool_down_s))
        self._say("error", f"{self.role} quarantined", why=reason, retry_in_s=self._policy.cool_down_s)

    def _condemn(self, now: float, detail: str) -> None:
        """Go on with a quarantine that an earlier daemon began."""
        self._quarantine(now, detail)

    def _try_again(self, now: float, detail: str) -> None:
        # One death is enough to go back: the cool-down's try is a probe, not a fresh row of deaths.
        self._deaths_in_row = max(0, self._policy.quarantine_after - 1)
        self._spawn(now, detail)

    def _pardon(self, now: float, detail: str) -> None:
        self._deaths_in_row = 0
        self._spawn(now, detail)

    def _stay_down(self, now: float, detail: str) -> None:
        self.state, self.reason, self._wanted, self._rests = State.STOPPED, None, False, False
        self._out.append(CancelTimer(self.timer))

    def _ignore(self, now: float, detail: str) -> None:
        """Nothing to do: the pair is legal and changes nothing."""

    def _say(self, level: Literal["debug", "info", "warning", "error"], text: str, **fields: object) -> None:
        self._out.append(Say(level, text, {"name": self.name, "pid": self.pid, **fields}))

    _TABLE: ClassVar[dict[tuple[State, Happening], Callable[["Child", float, str], None]]] = {
        (State.STOPPED, "start"): _spawn,
        (State.STOPPED, "restart"): _spawn,
        (State.STOPPED, "condemn"): _condemn,
        (State.STOPPED, "stop"): _ignore,
        (State.STOPPED, "drain"): _ignore,
        (State.STOPPED, "undrain"): _spawn,
        (State.IDLE, "start"): _spawn,
        (State.IDLE, "restart"): _spawn,
        (State.IDLE, "drain"): _stay_down,
        (State.IDLE, "undrain"): _ignore,
        (State.IDLE, "stop"): _stay_down,
        (State.STARTING, "hello"): _come_up,
        (State.STARTING, "start"): _ignore,
        (State.STARTING, "drain"): _end,
        (State.STARTING, "undrain"): _ignore,
        (State.STARTING, "stop"): _end,
        (State.STARTING, "restart"): _end_and_restart,
        (State.STARTING, "stalled"): _kill_stalled,
        (State.STARTING, "exited"): _exit,
        (State.READY, "drain"): _drain,
        (State.READY, "undrain"): _ignore,
        (State.READY, "start"): _ignore,
        (State.READY, "rest"): _end_and_rest,
        (State.READY, "stop"): _end,
        (State.READY, "restart"): _end_and_restart,
        (State.READY, "stalled"): _kill_stalled,
        (State.READY, "exited"): _exit,
        (State.DRAINING, "drain"): _ignore,
        (State.DRAINING, "undrain"): _undrain,
        (State.DRAINING, "idle"): _end,
        (State.DRAINING, "stop"): _end,
        (State.DRAINING, "restart"): _end_and_restart,
        (State.DRAINING, "stalled"): _kill_stalled,
        (State.DRAINING, "exited"): _exit,
        (State.KILLING, "timer"): _kill,
        (State.KILLING, "hello"): _ignore,
        (State.KILLING, "drain"): _let_go,
        (State.KILLING, "stop"): _let_go,
        (State.KILLING, "restart"): _want_again,
        (State.KILLING, "start"): _want_again,
        (State.KILLING, "undrain"): _want_again,
        (State.KILLING, "exited"): _exit,
        (State.RELEASING, "memory-free"): _release,
        (State.RELEASING, "timer"): _keep_memory_quarantined,
        (State.RELEASING, "drain"): _let_go,
        (State.RELEASING, "stop"): _let_go,
        (State.RELEASING, "restart"): _want_again,
        (State.RELEASING, "start"): _want_again,
        (State.RELEASING, "undrain"): _want_again,
        (State.BACKOFF, "timer"): _spawn,
        (State.BACKOFF, "drain"): _stay_down,
        (State.BACKOFF, "stop"): _stay_down,
        (State.BACKOFF, "restart"): _pardon,
        (State.BACKOFF, "undrain"): _ignore,
        (State.QUARANTINED, "timer"): _try_again,
        (State.QUARANTINED, "restart"): _pardon,
        (State.QUARANTINED, "start"): _pardon,
        (State.QUARANTINED, "undrain"): _ignore,
        (State.QUARANTINED, "drain"): _stay_down,
        (State.QUARANTINED, "stop"): _stay_down,
    }
