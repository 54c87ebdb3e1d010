"""The models of this host and where each is resident. Pure data with its questions; the machine changes it."""

from dataclasses import dataclass, field
from typing import Literal

from common.catalogue import Profile
from common.messages import ModelFacts, ModelStatus, ReplicaStatus
from neuron.memory.estimate import MemoryPlan
from neuron.memory.prefixes import Prefixes

Presence = Literal["present", "downloadable", "missing"]
"""A model's file is on this host; it is not, and `pull` could fetch it; it is not, and only a person can bring it."""

LeaveReason = Literal["room", "ttl", "admin"]
"""Another model needs its memory; nobody used it for its ttl_s; somebody asked for it."""


@dataclass(slots=True)
class Replica:
    """One model on one device, or over several that one worker owns."""

    devices: tuple[str, ...]
    """Each holds an equal share of it; in the order of the configuration."""
    plan: MemoryPlan
    """Sizes it is loaded with."""
    status: ReplicaStatus = "loading"
    progress: float | None = None
    since: float = 0.0
    """When this status began, monotonic seconds."""
    load_s: float | None = None
    """Of the last completed load."""
    memory_mb: int | None = None
    """As reserved, then as measured, of all its devices together."""
    host_mb: int = 0
    """In host memory, beside a GPU: as reserved, then as measured."""
    in_force: dict[str, str] = field(default_factory=dict)
    """Engine options as llama.cpp has them."""
    running: int = 0
    loaded_at: float = 0.0
    used_at: float = 0.0
    """Last start or end of a job, else the end of the load."""
    has_served: bool = False
    """Whether a job has ended since the load."""
    makes_room_for: str | None = None
    """The model that it leaves for; it stays after all if that one no longer needs the room."""
    comes_back: bool = False
    """Whether it is to be loaded again once it is gone: the model that it left for no longer needs the room."""
    leaving: bool = False
    """Unloaded as soon as it is idle; gets no new jobs, except those an unload of the whole model waits for."""
    leaves_for: LeaveReason = "admin"
    """Why it leaves, while it does."""
    sequences: int | None = None
    """In the engine's batches, as its worker told last."""
    kv_used: int | None = None
    """KV cells that hold a token, likewise."""
    prefixes: Prefixes = field(default_factory=Prefixes)
    """Conversations whose KV it holds."""
    waiters: list[tuple[str, str]] = field(default_factory=list)
    """(peer, request) of admin requests that end with this load or unload."""

    @property
    def device(self) -> str:
        """The device it is called after: its first."""
        return self.devices[0]

    @property
    def place(self) -> str:
        """Its devices, for people."""
        return "+".join(self.devices)

    @property
    def share_mb(self) -> int:
        """What it takes of each of its devices."""
        return share(self.memory_mb or 0, len(self.devices))

    @property
    def is_going(self) -> bool:
        """Whether its memory is counted on for others."""
        return self.status == "unloading" or self.makes_room_for is not None


@dataclass(slots=True)
class Model:
    """A model this host has a profile of."""

    profile: Profile
    is_own: bool
    """Whether the profile stands in the neuron's own file."""
    own: Profile | None = None
    """The neuron's own profile, which stands above others in source and engine."""
    given: Profile | None = None
    """The profile with its variants, where it has any; `profile` is the one that is tried or served."""
    others: list[Profile] = field(default_factory=list)
    """Variants that have not been tried yet, best first."""
    is_found: bool = False
    """Whether nobody describes it: its profile was made up for a file that was found."""
    newer: Profile | None = None
    """A profile that came while it was loaded with this one."""
    is_newer_found: bool = False
    """As `is_found`, of the newer profile."""
    is_wanted: bool = False
    """Whether somebody waits for its inspection: only then may its file be fetched."""
    fetched: set[str] = field(default_factory=set)
    """Sources that were tried to be fetched in this inspection, each once."""
    fetching: float | None = None
    """0 to 1: how much of its file has come; None: it is not being fetched."""
    presence: Presence | None = None
    """Of its file, where its path is not known: whether it was seen when that was last looked at."""
    path: str | None = None
    facts: ModelFacts | None = None
    fault: str | None = None
    """Why it cannot be served; None: nothing known against it."""
    fault_until: float = 0.0
    """Until then it is believed without another look, monotonic seconds."""
    identity: str = ""
    """Of the file that was looked at; "" if it is not known."""
    lasting_fault: tuple[str, str] | None = None
    """(identity, reason): of a fault that stays while the file does. A model of another profile is another object."""
    has_retried: bool = False
    """Whether its load, which ran out of memory, is being tried once more with a corrected estimate."""
    made_room: list[tuple[str, str]] = field(default_factory=list)
    """(model, device): who went for its load, and comes back should that fail."""
    shortfall: str | None = None
    """Why no device of this host can ever hold it, with the numbers; None: one can, or that is not known yet."""
    load_s: float | None = None
    """Of its last completed load."""
    load_deaths: int = 0
    """Workers in a row that ended by themselves while they loaded it."""
    inspecting: bool = False
    inspection: int = 0
    """Number of the last one, on this host: what an earlier one finds is of another file, or of other options."""
    forecast: dict[str, MemoryPlan] = field(default_factory=dict)
    """By device that can hold it alone: the sizes it would have there."""
    plan: MemoryPlan | None = None
    """Sizes of the last load; before the first one those on the device with most memory."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    """By their first device."""
    draining: bool = False
    pinned: bool = False
    """Never unloaded to make room."""
    unloaded_because: str | None = None
    """Of the last unload that nobody asked for."""
    unload_barrier: int | None = None
    """Jobs up to this serial number still run before an unload that was asked for."""

    @property
    def id(self) -> str:
        """The model's id."""
        return self.profile.id

    @property
    def fingerprint(self) -> str:
        """Identity of what it is served as."""
        return self.profile.fingerprint

    @property
    def status(self) -> ModelStatus:
        """The best that any replica offers."""
        statuses = {r.status for r in self.replicas.values()}
        for status in ("loaded", "recovering", "loading", "unloading", "failed"):
            if status in statuses:
                return status
        return "failed" if self.fault else "unloaded"

    def serving(self) -> list[Replica]:
        """Return the replicas that take jobs now."""
        all_leave = self.unload_barrier is not None
        return [r for r in self.replicas.values() if r.status == "loaded" and (all_leave or not r.leaving)]

    def is_coming(self) -> bool:
        """Say whether a replica serves or will serve without anything further being done."""
        return any(r.status in ("loaded", "loading", "recovering") and not r.leaving for r in self.replicas.values())


@dataclass(slots=True)
class Want:
    """A model that is to be loaded as soon as there is room for it."""

    model: str
    device: str | None
    """Only there; None: anywhere."""
    since: float
    """Monotonic seconds."""
    waiters: list[tuple[str, str]] = field(default_factory=list)
    """(peer, request) of loads that were asked for; jobs that wait are in the book."""
    is_own: bool = False
    """The neuron itself wants it, as it was loaded before or is to be preloaded; it waits though nobody asks."""
    at: tuple[str, ...] = ()
    """Devices on which room is being made; none: nowhere yet."""
    plan: MemoryPlan | None = None
    """Sizes it will be loaded with there."""

    @property
    def share_mb(self) -> int:
        """What it will take of each of its devices."""
        return 0 if self.plan is None else share(self.plan.memory_mb, len(self.at))


def host_key(model: str, devices: tuple[str, ...]) -> str:
    """Return the name under which a replica's host memory is promised: a model may have several on a host."""
    return f"{model}@{devices[0]}"


def share(memory_mb: int, devices: int) -> int:
    """Return what each of so many devices holds of a model, in MiB."""
    return -(-memory_mb // devices)
