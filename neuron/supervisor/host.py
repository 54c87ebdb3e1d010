"""What the supervisor knows: the state that the parts of the machine share and alone change, one event at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from common.messages import Eviction, FromNeuron, ToPrep, ToWorker, WorkerHello
from neuron.broker.jobs import JobBook
from neuron.broker.pace import Pace
from neuron.broker.peers import Peers
from neuron.discovery import Device, ProbeReading
from neuron.memory.ledger import Ledger
from neuron.memory.residency import Model, Want
from neuron.settings import NeuronSettings
from neuron.supervisor.child import Child
from neuron.supervisor.instructions import Instruction, Say, SendChild, SendPeer, SetTimer
from neuron.supervisor.states import State


@dataclass(slots=True)
class Host:
    """One neuron."""

    settings: NeuronSettings
    incarnation: str
    new_id: Callable[[], str]
    devices: dict[str, Device]
    """By UUID, in the order of the configuration."""
    workers: dict[str, Child]
    """By device; a device that is unavailable from the start has none."""
    prep: Child
    probe: Child
    ledger: Ledger
    models: dict[str, Model] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    jobs: JobBook = field(default_factory=JobBook)
    pace: Pace = field(default_factory=Pace)
    peers: Peers = field(default_factory=Peers)
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

    def tell_worker(self, device: str, message: ToWorker) -> None:
        """Send a message to the device's worker."""
        self.out.append(SendChild(self.workers[device].incarnation, message))

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

    def is_asked_for(self, model: str) -> bool:
        """Say whether jobs or loads still need the model."""
        has_jobs = self.jobs.waiting(model) > 0 or self.jobs.running(model) > 0
        is_parked = any(model in models for models in self.parked.values())
        return has_jobs or is_parked or any(w.model == model for w in self.wants.values())

    def can_serve(self, device: str) -> bool:
        """Say whether models may be placed on the device now, its worker being up or on its way up."""
        worker = self.workers.get(device)
        return (
            worker is not None
            and device not in self.problems
            and device not in self.draining_devices
            and worker.state not in (State.STOPPED, State.DRAINING, State.QUARANTINED)
        )

    def why_not(self, device: str) -> str | None:
        """Return why the device does not serve, None if it does."""
        if device in self.problems:
            return self.problems[device]
        worker = self.workers[device]
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
