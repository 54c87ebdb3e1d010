"""The models of this host and where each is resident. Pure data with its questions; the machine changes it."""

from dataclasses import dataclass, field

import msgspec

from common.catalogue import Profile
from common.ids import digest
from common.messages import ModelFacts, ModelStatus, ReplicaStatus
from neuron.memory.estimate import MemoryPlan
from neuron.memory.prefixes import Prefixes


@dataclass(slots=True)
class Replica:
    """One model on one device."""

    device: str
    plan: MemoryPlan
    """Sizes it is loaded with."""
    status: ReplicaStatus = "loading"
    progress: float | None = None
    since: float = 0.0
    """When this status began, monotonic seconds."""
    load_s: float | None = None
    """Of the last completed load."""
    memory_mb: int | None = None
    """As reserved, then as measured."""
    running: int = 0
    leaving: bool = False
    """Unloaded as soon as it is idle; gets no new jobs, except those an unload of the whole model waits for."""
    prefixes: Prefixes = field(default_factory=Prefixes)
    """Conversations whose KV it holds."""
    waiters: list[tuple[str, str]] = field(default_factory=list)
    """(peer, request) of admin requests that end with this load or unload."""


@dataclass(slots=True)
class Model:
    """A model this host has a profile of."""

    profile: Profile
    is_own: bool
    """Whether the profile stands in the neuron's own file."""
    path: str | None = None
    facts: ModelFacts | None = None
    fault: str | None = None
    """Why it cannot be served; None: nothing known against it."""
    shortfall: str | None = None
    """Why no device of this host can ever hold it, with the numbers; None: one can, or that is not known yet."""
    inspecting: bool = False
    plan: MemoryPlan | None = None
    """Sizes of the last load; before the first one those on the device with most memory."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    draining: bool = False
    pinned: bool = False
    """Never unloaded to make room."""
    unload_barrier: int | None = None
    """Jobs up to this serial number still run before an unload that was asked for."""

    @property
    def id(self) -> str:
        """The model's id."""
        return self.profile.id

    @property
    def fingerprint(self) -> str:
        """Identity of the profile in force."""
        return digest(msgspec.msgpack.encode(self.profile))

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
