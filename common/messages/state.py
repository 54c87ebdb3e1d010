"""What a node says of itself: its devices, replicas and models."""

from typing import Literal

from common.messages.base import Message, Part

ReplicaStatus = Literal["loading", "loaded", "unloading", "recovering", "failed"]
EventSubject = Literal["node", "device", "model", "gateway", "helper"]
"""What an event is about; a helper is the prep process or the probe."""
ModelStatus = Literal["unloaded", "loading", "loaded", "unloading", "recovering", "failed"]


class DeviceState(Part, frozen=True, kw_only=True):
    """One device and the worker that owns it. Memory in MiB; None is unknown, never 0."""

    uuid: str
    name: str
    kind: Literal["cuda", "cpu"]
    state: str
    """State of the worker (docs/states.md), or `unavailable`."""
    reason: str | None = None
    """Why it does not serve, and the remedy."""
    memory_mb: int | None = None
    reserved_mb: int = 0
    """Promised to models by the ledger."""
    used_mb: int | None = None
    utilization: float | None = None
    """0 to 1."""
    temperature_c: float | None = None
    power_w: float | None = None
    draining: bool = False
    worker_pid: int | None = None
    restarts: int = 0
    paused_for_s: float | None = None
    """Left of a pause when this state was made; None: it is not paused, or until an admin resumes it."""
    steps: int = 0
    cycles: int = 0
    """Loads that its present worker has completed."""
    phase: str | None = None
    backend: str | None = None
    """llama.cpp backend that the worker really uses, for example CPU or CUDA."""
    owner: str | None = None
    """The device after which the worker is called that owns this one too, for a model that spans both."""


class ReplicaState(Part, frozen=True, kw_only=True):
    """A model on a device."""

    device: str
    status: ReplicaStatus
    memory_mb: int | None = None
    progress: float | None = None
    """0 to 1 while loading."""
    running: int = 0
    load_s: float | None = None
    makes_room_for: str | None = None
    """Why it is on its way out: another model needs its memory."""
    also_on: list[str] = []
    """Further devices that hold equal shares of it; `memory_mb` is all of them together."""


class ModelState(Part, frozen=True, kw_only=True):
    """A model this neuron serves or could serve."""

    id: str
    status: ModelStatus
    reason: str | None = None
    """Why it failed."""
    replicas: list[ReplicaState] = []
    running: int = 0
    queued: int = 0
    """Waiting for a slot or for the model, being rendered included."""
    context: int | None = None
    kv_tokens: int | None = None
    parallel: int | None = None
    memory_mb: int | None = None
    """MiB reserved a replica, or estimated for one."""
    feasible: bool = True
    """False: no device of this host can hold it, see reason."""
    draining: bool = False
    capabilities: list[str] = []
    profile: str = ""
    """Fingerprint of the profile in force."""
    pinned: bool = False
    """Never unloaded to make room."""
    residency_priority: int = 100
    """Class: it makes room only for its own class and higher ones."""
    waits_for_room: bool = False
    """Other models have to make room before it can be loaded."""
    service_ms: int | None = None
    """Measured time that a request holds its slot; None: none has ended yet."""
    unloaded_because: str | None = None
    """Of the last unload that nobody asked for."""
    prefixes: list[str] = []
    """Hashes of prompts whose KV is resident, the latest last: a job whose prefix chain ends in one goes here."""


class LifecycleEvent(Part, frozen=True, kw_only=True):
    """Something that became of a node, a device's worker, or a model, and why."""

    cursor: int
    """Rises by one with each event of one life of the neuron, from 1."""
    age_ms: int
    """How long ago, when this message was made."""
    level: Literal["info", "warning", "error"]
    subject: EventSubject
    what: str
    reason: str | None = None
    device: str | None = None
    model: str | None = None
    details: dict[str, str] = {}


class NodeState(Message, frozen=True, kw_only=True):
    """What a neuron is and holds. Pushed whole on Hello and every 10 s, else only what changed.

    A receiver applies a partial state only if its `seq` is the next one; after a gap it says Hello again.
    """

    incarnation: str
    seq: int
    full: bool
    name: str
    version: str
    state: Literal["serving", "draining"] = "serving"
    build: str | None = None
    """llama.cpp's own build, as the workers report it."""
    devices: list[DeviceState] = []
    models: list[ModelState] = []
    gone: list[str] = []
    """Models of an earlier state that no longer exist."""
    aliases: dict[str, str] = {}
    events: list[LifecycleEvent] = []
    """Partial: those since the last push; full: the last ones, some of which may be known."""
