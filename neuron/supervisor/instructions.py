"""What the machine wants done, in the imperative. The shell (neuron.daemon) carries it out and reports by an event."""

from dataclasses import dataclass, field
from typing import Any, Literal

from common.messages import FromNeuron, ToPrep, ToWorker
from neuron.memory.saved import Saved


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child; answered by ChildSpawned, or ChildExited if that fails."""

    role: Literal["worker", "prep", "probe"]
    name: str
    """The device's UUID for a worker."""
    incarnation: str
    devices: tuple[str, ...] = ()
    """UUIDs of all devices that a worker owns."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGTERM, or SIGKILL to the whole group, to a child; answered by ChildExited when it is gone."""

    incarnation: str
    hard: bool


@dataclass(frozen=True, slots=True)
class SendChild:
    """Send a message to a worker or to prep. One that is gone meanwhile exits soon after; nothing is reported."""

    incarnation: str
    message: ToWorker | ToPrep


@dataclass(frozen=True, slots=True)
class SendPeer:
    """Send a message to a gateway or to neuronctl; PeerLost if it is gone."""

    peer: str
    message: FromNeuron


@dataclass(frozen=True, slots=True)
class Nudge:
    """Have the probe read at once instead of in its turn."""

    incarnation: str


@dataclass(frozen=True, slots=True)
class ResolveSource:
    """Find a model's file; answered by SourceResolved."""

    model: str
    number: int
    """Of the inspection."""
    source: str
    beside: tuple[str, ...] = ()
    """Paths of other files that the model is served with."""


@dataclass(frozen=True, slots=True)
class WatchSources:
    """Look now, and again and again, which of these sources have their file on this host; answered by SourcesLocated.

    Instead of those that were to be watched before.
    """

    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchSource:
    """Fetch a source from its hub; answered by FetchMoved now and then, and by FetchEnded."""

    source: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire TimerFired(key) at `at`, on the monotonic clock, instead of any earlier timer of that key."""

    key: str
    at: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Forget the timer."""

    key: str


@dataclass(frozen=True, slots=True)
class Say:
    """Log a line."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TellLog:
    """Send a peer what a child has written to stderr, since its line number `since`."""

    peer: str
    request: str
    child: str
    since: int


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write what outlives the daemon."""

    saved: Saved


@dataclass(frozen=True, slots=True)
class Exit:
    """Everything has ended; leave the loop."""

    status: int


Instruction = (
    Spawn
    | Kill
    | SendChild
    | SendPeer
    | Nudge
    | ResolveSource
    | WatchSources
    | FetchSource
    | SetTimer
    | CancelTimer
    | Say
    | TellLog
    | SaveState
    | Exit
)
