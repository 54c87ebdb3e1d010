"""What the supervisor knows: the state that the parts of the machine share and alone change, one event at a time."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from common.catalogue import Defaults, Profile
from common.messages import DiskState, Eviction, FromNeuron, ToPrep, ToWorker, WorkerHello
from neuron.broker.jobs import JobBook
from neuron.broker.pace import Pace
from neuron.broker.peers import Peers
from neuron.discovery import Device, ProbeReading
from neuron.memory.ledger import Ledger
from neuron.memory.residency import Model, Replica, Want
from neuron.settings import NeuronSettings
from neuron.supervisor.child import Child
from neuron.supervisor.inquest import Inquest
from neuron.supervisor.instructions import Instruction, Say, SendChild, SendPeer, SetTimer
from neuron.supervisor.journal import Journal
from neuron.supervisor.states import State


@dataclass(slots=True)
class Regroup:
    """A change of owners: the workers of these devices end, then others are started."""

    devices: list[str]
    team: tuple[str, ...]
    """Those that are to have one owner, the first of them; the others are their own."""
    has_begun: bool = False
    """Whether the workers have been told to end."""


@dataclass(slots=True)
class Host:
    """One neuron."""

    settings: NeuronSettings
    incarnation: str
    new_id: Callable[[], str]
    devices: dict[str, Device]
    """By UUID, in the order of the configuration."""
    workers: dict[str, Child]
    """By device; one that is unavailable from the start has none.
    The worker of a device that another one owns is stopped.
    """
    prep: Child
    probe: Child
    ledger: Ledger
    owners: dict[str, str] = field(default_factory=dict)
    """By device: the one whose worker owns it; only where that is another, or where it owns others too."""
    regroups: list[Regroup] = field(default_factory=list)
    """Changes of owners that are under way."""
    held: set[str] = field(default_factory=set)
    """Owners whose workers are to end as soon as their running jobs have."""
    models: dict[str, Model] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    own_defaults: Defaults = field(default_factory=Defaults)
    """Of this host's models file."""
    given_defaults: Defaults | None = None
    """Of the models file of the gateway that has told of its own last."""
    given: set[str] = field(default_factory=set)
    """Models that a gateway's file describes."""
    inspections: int = 0
    """Begun so far."""
    fetches: set[str] = field(default_factory=set)
    """Sources that are being fetched."""
    located: dict[str, str] = field(default_factory=dict)
    """By source: the path of its file, where it was there at the last look."""
    jobs: JobBook = field(default_factory=JobBook)
    xids: Counter[str] = field(default_factory=Counter)
    """By the UUID that the driver knows: its error events since the start."""
    evictions: Counter[str] = field(default_factory=Counter)
    """Models unloaded since the start, by why."""
    disks: list[DiskState] = field(default_factory=list)
    """Of the last look."""
    journal: Journal = field(default_factory=Journal)
    pace: Pace = field(default_factory=Pace)
    peers: Peers = field(default_factory=Peers)
    inquest: Inquest = field(default_factory=Inquest)
    hellos: dict[str, WorkerHello] = field(default_factory=dict)
    """By device: what its present worker reported."""
    problems: dict[str, str] = field(default_factory=dict)
    """By device: why it is unavailable, and the remedy."""
    parked: dict[str, list[str]] = field(default_factory=dict)
    """By device: models to load again when its worker is back from a drain or a quarantine."""
    advised: Eviction | None = None
    """How gateways would have room made; the settings of this host win."""
    wants: dict[tuple[str, str | None], Want] = field(default_factory=dict)
    """By (model, device): what waits for room, in the order of asking."""
    corrections: dict[str, int] = field(default_factory=dict)
    """By fingerprint and device: measured less estimated memory of the last load, in MiB."""
    leaving: set[str] = field(default_factory=set)
    """Models with replicas that are to be unloaded when idle."""
    draining_devices: set[str] = field(default_factory=set)
    """Those that are paused included."""
    paused: dict[str, float | None] = field(default_factory=dict)
    """By device: when the pause ends, monotonic seconds; None: when an admin ends it."""
    draining: bool = False
    stopping: bool = False
    reading: ProbeReading | None = None
    driver_problem: str | None = None
    """Why nothing that the GPUs' driver has told can be relied on."""
    undecodable: int = 0
    now: float = 0.0
    """Monotonic seconds, of the event in progress."""
    out: list[Instruction] = field(default_factory=list)
    is_dirty: bool = False
    """Whether the published state has changed."""

    def say(self, level: Literal["debug", "info", "warning", "error"], text: str, **fields: Any) -> None:
        """Log a line."""
        self.out.append(Say(level, text, fields))

    def tell(self, peer: str, message: FromNeuron) -> None:
        """Send a message to a gateway or to neuronctl."""
        self.out.append(SendPeer(peer, message))

    def owner(self, device: str) -> str:
        """Return the device after which the worker is called that owns this one."""
        return self.owners.get(device, device)

    def worker(self, device: str) -> Child:
        """Return the worker that owns a device."""
        return self.workers[self.owner(device)]

    def members(self, owner: str) -> list[str]:
        """Return the devices that a worker owns, its own first."""
        return [d for d in self.devices if self.owner(d) == owner]

    def residents(self, *devices: str) -> list[tuple[Model, Replica]]:
        """Return the models of these devices with their replicas there."""
        wanted = set(devices)
        return [(m, r) for m in self.models.values() for r in m.replicas.values() if not wanted.isdisjoint(r.devices)]

    def must_regroup(self, devices: Collection[str]) -> bool:
        """Say whether these devices belong to several workers."""
        return len({self.owner(d) for d in devices}) > 1

    def affected(self, devices: Collection[str]) -> list[str]:
        """Return all devices of the workers that own these."""
        owners = {self.owner(d) for d in devices}
        return [d for d in self.devices if self.owner(d) in owners]

    def is_regrouping(self, device: str) -> bool:
        """Say whether the device is about to get another owner, its worker having been told to end."""
        return any(device in r.devices for r in self.regroups)

    def is_held(self, device: str) -> bool:
        """Say whether a device gets no new jobs for now, because its worker is to end for another owner."""
        return self.owner(device) in self.held

    def replica(self, model: Model, owner: str) -> Replica | None:
        """Return a model's replica in a worker, which has one at most."""
        return next((r for r in model.replicas.values() if self.owner(r.device) == owner), None)

    def tell_worker(self, device: str, message: ToWorker) -> None:
        """Send a message to the device's worker."""
        self.out.append(SendChild(self.worker(device).incarnation, message))

    def tell_prep(self, message: ToPrep) -> None:
        """Send a message to the prep process."""
        self.out.append(SendChild(self.prep.incarnation, message))

    def wake_in(self, key: str, seconds: float) -> None:
        """Have a timer fire."""
        self.out.append(SetTimer(key, self.now + seconds))

    def pause(self, device: str, for_s: float | None) -> None:
        """Leave a device alone for so many seconds; None: until an admin ends that. A later pause replaces it."""
        self.paused[device] = None if for_s is None else self.now + for_s
        self.draining_devices.add(device)
        if for_s is not None:
            self.wake_in(f"pause:{device}", for_s)
        self.is_dirty = True

    def candidates(self, model: Model) -> list[Profile]:
        """Return what this host may serve a model as by its newest profile, the best variant first."""
        profile = model.newer or model.given or model.profile
        return profile.for_host(self.settings.name) or [profile]

    def sources(self, model: Model) -> list[str]:
        """Return where this host may find a model."""
        return [p.source for p in self.candidates(model)]

    def paths(self, model: Model) -> list[str]:
        """Return the files that the model is, as far as they are known."""
        found = [self.located[s] for s in self.sources(model) if s in self.located]
        return found if model.path is None else [model.path, *found]

    def is_asked_for(self, model: str) -> bool:
        """Say whether jobs or loads still need the model."""
        has_jobs = self.jobs.waiting(model) > 0 or self.jobs.running(model) > 0
        is_parked = any(model in models for models in self.parked.values())
        return has_jobs or is_parked or any(w.model == model for w in self.wants.values())

    def can_serve(self, device: str) -> bool:
        """Say whether models may be placed on the device now, its worker being up or on its way up."""
        if device not in self.workers or device in self.problems or device in self.draining_devices:
            return False
        down = (State.STOPPED, State.DRAINING, State.QUARANTINED)
        worker = self.worker(device)
        return (worker.state not in down and not worker.is_stuck) or self.is_regrouping(device)

    def why_not(self, device: str) -> str | None:
        """Return why the device does not serve, None if it does."""
        if device in self.problems:
            return self.problems[device]
        worker = self.worker(device)
        if worker.state is State.IDLE:
            return None
        if worker.state is State.QUARANTINED:
            return f"quarantined: {worker.reason}"
        if device in self.paused:
            end = self.paused[device]
            return "paused until it is resumed" if end is None else f"paused for {(end - self.now) / 60:.0f} min"
        if device in self.draining_devices:
            return "draining"
        return worker.reason
