"""What happens to the supervisor, in the past tense. Everything comes in through Machine.handle, one at a time.

Events about a child carry its incarnation, so that news of an earlier life is recognised as late.
"""

from dataclasses import dataclass, field

from common.catalogue import Catalogue
from common.messages import DiskState, FromPrep, FromWorker, ToNeuron
from neuron.discovery import ProbeReading
from neuron.memory.saved import Saved
from neuron.models.library import Found


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon is up: start what it owns."""

    saved: Saved | None = None
    """What an earlier daemon has left."""
    wall_s: float = 0.0
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ChildSpawned:
    """A process exists."""

    incarnation: str
    pid: int


@dataclass(frozen=True, slots=True)
class ChildExited:
    """A process is gone and reaped, or could not be made. Its frames are no longer relayed."""

    incarnation: str
    cause: str
    """In words: `signal SIGKILL`, `status 3`."""
    is_outside: bool = False
    """Somebody else than this program has ended it, or had stopped it: nobody here is to blame."""
    lacks_engine: bool = False
    """What is installed is to blame, not the device."""
    steps: int = 0
    """That a worker had completed."""
    named: tuple[str, ...] = ()
    """Jobs that a worker computed at that moment."""


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    """A worker's message, other than Tokens. `gateway` is whom it is for; "" is the supervisor."""

    incarnation: str
    gateway: str
    message: FromWorker


@dataclass(frozen=True, slots=True)
class PrepSaid:
    """A message of the prep process."""

    incarnation: str
    message: FromPrep


@dataclass(frozen=True, slots=True)
class ProbeRead:
    """A line of the probe."""

    incarnation: str
    reading: ProbeReading


@dataclass(frozen=True, slots=True)
class PeerSaid:
    """A message of a gateway or of neuronctl."""

    peer: str
    message: ToNeuron


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A send told that this peer is gone, or it is too far behind to keep."""

    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class SourceResolved:
    """Where a model's file is, or why there is none."""

    model: str
    number: int
    """ResolveSource's."""
    path: str | None
    error: str | None = None
    identity: str = ""
    """Of the file's present content; "" if that is not known."""


@dataclass(frozen=True, slots=True)
class ModelsFound:
    """What lies on the disks of this host, all of it, after each look."""

    models: list[Found]
    disks: list[DiskState] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SourcesLocated:
    """What a look for the watched sources has shown: by source the path of its file, None if it is not here."""

    places: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class FetchMoved:
    """More of a source has come."""

    source: str
    progress: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """A source is complete on this host, or why it is not."""

    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class CatalogueRead:
    """The models file of this host was read again, and is valid."""

    catalogue: Catalogue


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A deadline has come."""

    key: str


@dataclass(frozen=True, slots=True)
class Woken:
    """The host has slept: what the driver and the GPUs held may be gone."""

    slept_s: float


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or SIGINT. The second one ends everything at once."""


Event = (
    Started | ChildSpawned | ChildExited | WorkerSaid | PrepSaid | ProbeRead | PeerSaid | PeerLost | SourceResolved
    | ModelsFound | SourcesLocated | FetchMoved | FetchEnded | CatalogueRead | TimerFired | Woken | StopAsked
)  # fmt: skip
