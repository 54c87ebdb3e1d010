"""Drives the pure machine in tests: feeds events, plays the obedient child, keeps what peers were told."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from common.catalogue import Catalogue, Profile
from common.messages import (
    PROTOCOL_VERSION,
    Beat,
    Ended,
    EndedItem,
    Failed,
    FromNeuron,
    FromPrep,
    FromWorker,
    Hello,
    Inspect,
    Inspected,
    Job,
    JobKey,
    Loaded,
    LoadModel,
    ModelFacts,
    Prepare,
    Prepared,
    PrepHello,
    Run,
    Started,
    Submit,
    Task,
    Text,
    ToNeuron,
    ToPrep,
    ToWorker,
    Unloaded,
    UnloadModel,
    WorkerHello,
)
from neuron.discovery import Device, Gpu, ProbeReading
from neuron.memory.ledger import HOST
from neuron.settings import NeuronSettings
from neuron.supervisor import events
from neuron.supervisor.instructions import (
    CancelTimer,
    Exit,
    FetchSource,
    Instruction,
    Kill,
    Nudge,
    ResolveSource,
    SendChild,
    SendPeer,
    SetTimer,
    Spawn,
    WatchSources,
)
from neuron.supervisor.machine import Machine

M = TypeVar("M")

FACTS = ModelFacts(
    architecture="llama",
    name="tiny",
    file_bytes=50 * 2**20,
    context_train=2048,
    kv_bytes_per_token=1024,
    layers=2,
    embedding=64,
    vocabulary=1000,
    capabilities=["chat", "completion"],
    vocab_fingerprint="v",
)


def cpu(uuid: str, memory_mb: int = 2000) -> Device:
    """Return a virtual CPU device."""
    return Device(uuid=uuid, name="virtual CPU device", kind="cpu", memory_mb=memory_mb, threads=1, visible="")


def gpu(uuid: str, memory_mb: int = 2000) -> Device:
    """Return a GPU."""
    return Device(uuid=uuid, name="RTX", kind="cuda", memory_mb=memory_mb, visible=uuid)


def profile(model: str, *, parallel: int = 2, vram_mb: int = 300, **more: Any) -> Profile:
    """Return a small profile."""
    return Profile(
        id=model, source=f"file:/{model}.gguf", context=1000, kv_tokens=2000, parallel=parallel, vram_mb=vram_mb, **more
    )


def job(name: str, model: str = "m", *, attempt: int = 1, budget_ms: int | None = None) -> Job:
    """Return a job."""
    return Job(id=name, attempt=attempt, model=model, request_id="r", input=Text(text="hi"), budget_ms=budget_ms)


class Drive:
    """A machine with a clock, timers, and children that do as told unless a test plays them itself."""

    def __init__(
        self,
        *,
        devices: list[Device] | None = None,
        models: list[Profile] | None = None,
        settings: NeuronSettings | None = None,
        obedient: bool = True,
    ) -> None:
        ids = (f"id{i}" for i in itertools.count(1))
        self.now = 100.0
        self.obedient = obedient
        self.machine = Machine(
            settings or NeuronSettings(name="test"),
            devices or [cpu("CPU-0")],
            Catalogue(models=[profile("m")] if models is None else models),
            new_id=lambda: next(ids),
            strict=True,
        )
        self.alive: dict[str, Spawn] = {}
        """Spawned and not exited, by incarnation."""
        self.told: dict[str, list[FromNeuron]] = defaultdict(list)
        """What peers were sent."""
        self.sent: list[tuple[str, ToWorker | ToPrep]] = []
        """(child's name, message)."""
        self.timers: dict[str, float] = {}
        self.exits: list[int] = []
        self.nudges = 0
        """How often the probe was to read out of its turn."""
        self.absent: set[str] = set()
        """Models whose file is nowhere."""
        self.absent_paths: set[str] = set()
        self.fetching: list[str] = []
        """Sources that are to be fetched, in order; a test says how each ends."""
        self.watched: tuple[str, ...] = ()
        """Sources that are looked for."""
        self.identities: dict[str, str] = {}
        """By model: of what is in its file; not known of the others."""
        self.facts_by_path: dict[str, ModelFacts] = {}
        self.facts: dict[str, ModelFacts] = {}
        """By model: what prep finds out, where it is not the same as of all."""
        self.tasks: dict[str, tuple[str, Task]] = {}
        """Running at a worker: (device, task) by job."""
        self.beside: dict[str, int] = {}
        """MiB of host memory that a worker reports of a model, by its id."""
        self.holding_back: set[type] = set()
        """Kinds of messages to children that an obedient child does not answer."""
        self.sees_gpus = True
        """Whether llama.cpp finds the GPUs."""
        self.unkillable: set[str] = set()
        """Children that no signal ends."""

    def start(self) -> "Drive":
        """Start the daemon and let everything come up."""
        self.feed(events.Started())
        return self

    def feed(self, event: events.Event) -> None:
        """Feed one event and carry out what follows from it."""
        queue = [event]
        while queue:
            for instruction in self.machine.handle(queue.pop(0), self.now):
                queue += self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> list[events.Event]:
        match instruction:
            case Spawn(role=role, incarnation=incarnation):
                self.alive[incarnation] = instruction
                out: list[events.Event] = [events.ChildSpawned(incarnation, 1000 + len(self.alive))]
                if self.obedient and WorkerHello not in self.holding_back and role == "worker":
                    out.append(events.WorkerSaid(incarnation, "", self.hello(incarnation)))
                elif self.obedient and role == "prep":
                    out.append(events.PrepSaid(incarnation, PrepHello(pid=1, incarnation=incarnation, build="b1")))
                return out
            case Kill(incarnation):
                if self.obedient and incarnation in self.alive and self.alive[incarnation].name not in self.unkillable:
                    return [self._exit(incarnation, "signal SIGTERM")]
            case SendPeer(peer, message):
                self.told[peer].append(message)
            case SendChild(incarnation, message):
                if incarnation in self.alive:
                    self.sent.append((self.alive[incarnation].name, message))
                    return self._obey(incarnation, message)
            case ResolveSource(model, number, source):
                path = source.removeprefix("file:")
                if model in self.absent or path in self.absent_paths:
                    return [events.SourceResolved(model, number, None, "is not on this host")]
                return [events.SourceResolved(model, number, path, identity=self.identities.get(model, ""))]
            case WatchSources(sources):
                self.watched = sources
                return [self.look()]
            case FetchSource(source):
                self.fetching.append(source)
            case SetTimer(key, at):
                self.timers[key] = at
            case CancelTimer(key):
                self.timers.pop(key, None)
            case Nudge(incarnation):
                self.nudges += self.alive[incarnation].role == "probe"
            case Exit(status):
                self.exits.append(status)
        return []

    def look(self) -> events.SourcesLocated:
        """Return what a look for the watched sources shows."""
        paths = {s: s.removeprefix("file:") for s in self.watched}
        models = {m.profile.source: m.id for m in self.machine.host.models.values()}
        is_absent = {s: p in self.absent_paths or models.get(s) in self.absent for s, p in paths.items()}
        return events.SourcesLocated({s: None if is_absent[s] else p for s, p in paths.items()})

    def hello(self, incarnation: str) -> WorkerHello:
        """Return what a healthy worker says first."""
        spawn = self.alive[incarnation]
        if self.sees_gpus and self.machine.host.devices[spawn.name].kind == "cuda":
            seen = [f"CUDA{i}: RTX" for i, _ in enumerate(spawn.devices)]
            return WorkerHello(pid=1, incarnation=incarnation, build="b1", backend="CUDA", devices=seen)
        return WorkerHello(pid=1, incarnation=incarnation, build="b1", backend="CPU", devices=[])

    def _obey(self, incarnation: str, message: ToWorker | ToPrep) -> list[events.Event]:
        device = self.alive[incarnation].name
        if isinstance(message, Run):
            self.tasks.update({t.job: (device, t) for t in message.tasks})
        if not self.obedient or type(message) in self.holding_back:
            return []
        match message:
            case Inspect(model=model, path=path, number=number):
                facts = self.facts_by_path.get(path) or self.facts.get(model, FACTS)
                return [events.PrepSaid(incarnation, Inspected(model=model, facts=facts, number=number))]
            case Prepare(job=wanted):
                answer = Prepared(
                    job=wanted.id, attempt=wanted.attempt, tokens=[1, 2, 3], max_tokens=10, vocab_fingerprint="v"
                )
                return [events.PrepSaid(incarnation, answer)]
            case LoadModel(model=model):
                return [events.WorkerSaid(incarnation, "", self.loaded(model))]
            case Run(tasks=tasks):
                return [events.WorkerSaid(incarnation, t.gateway, Started(items=[t.started])) for t in tasks]
            case UnloadModel(model=model):
                return [events.WorkerSaid(incarnation, "", Unloaded(model=model))]
        return []

    def loaded(self, model: str) -> Loaded:
        """Return a worker's report of a completed load."""
        host_mb = self.beside.get(model, 0)
        return Loaded(model=model, memory_mb=250, context=1000, kv_tokens=2000, parallel=2, host_mb=host_mb)

    def incarnation(self, name: str) -> str:
        """Return the live incarnation of a device's worker, or of prep."""
        return next(i for i, s in self.alive.items() if s.name == name)

    def _exit(self, incarnation: str, cause: str, named: Sequence[str] = (), steps: int = 0) -> events.ChildExited:
        name = self.alive.pop(incarnation).name
        self.tasks = {j: t for j, t in self.tasks.items() if t[0] != name}
        is_outside = cause in ("signal SIGKILL", "signal SIGTERM")
        lacks_engine = cause == "status 78"
        return events.ChildExited(incarnation, cause, is_outside, lacks_engine, steps, tuple(named))

    def die(self, name: str, cause: str = "signal SIGKILL", *, named: Sequence[str] = (), steps: int = 0) -> None:
        """Have a child die; `named`: jobs that a worker was computing, after so many steps."""
        self.feed(self._exit(self.incarnation(name), cause, named, steps))

    def worker_says(self, device: str, message: FromWorker, gateway: str = "") -> None:
        """Have a worker say something."""
        self.feed(events.WorkerSaid(self.incarnation(device), gateway, message))

    def prep_says(self, message: FromPrep) -> None:
        """Have prep say something."""
        self.feed(events.PrepSaid(self.incarnation("prep"), message))

    def probe_reads(self, *gpus: str, **more: Any) -> None:
        """Have the probe list these GPUs, of which no process holds any memory."""
        devices = [Gpu(uuid=u, name="RTX", pci=u, index=i) for i, u in enumerate(gpus)]
        self.feed(events.ProbeRead(self.incarnation("probe"), ProbeReading(devices=devices, **more)))

    def peer_says(self, message: ToNeuron, peer: str = "gw") -> None:
        """Have a peer say something."""
        self.feed(events.PeerSaid(peer, message))

    def connect(self, peer: str = "gw", role: str = "gateway") -> "Drive":
        """Have a peer say Hello."""
        self.peer_says(Hello(version=PROTOCOL_VERSION, incarnation=peer, role=role, name=peer), peer)  # type: ignore[arg-type]
        return self

    def submit(self, *jobs: Job, peer: str = "gw") -> None:
        """Submit jobs."""
        self.peer_says(Submit(jobs=list(jobs)), peer)

    def finish(self, name: str, *, total: int = 5) -> None:
        """Have the worker complete a job."""
        device, task = self.tasks.pop(name)
        item = EndedItem(job=name, attempt=task.attempt, total=total, reason="stop", prompt_tokens=len(task.tokens))
        self.worker_says(device, Ended(items=[item]), task.gateway)

    def pass_time(self, seconds: float, *, beats: bool = True) -> None:
        """Let time pass, firing timers as they come due; connected gateways beat meanwhile."""
        end = self.now + seconds
        while due := [(at, key) for key, at in self.timers.items() if at <= end]:
            at, key = min(due)
            del self.timers[key]
            self.now = max(self.now, at)
            if beats:
                for peer in self.machine.host.peers.gateways():
                    live = [JobKey(e.job.id, e.job.attempt) for e in self.machine.host.jobs.of_gateway(peer)]
                    self.peer_says(Beat(incarnation=peer, jobs=live), peer)
                for incarnation, spawn in list(self.alive.items()):
                    if spawn.role == "worker":
                        child = self.machine.host.workers[spawn.name]
                        if child.incarnation == incarnation:
                            child.note_progress(self.now)
            self.feed(events.TimerFired(key))
        self.now = end

    def told_of(self, kind: type[M], peer: str = "gw") -> list[M]:
        """Return the messages of a kind that a peer was sent."""
        return [m for m in self.told[peer] if isinstance(m, kind)]

    def ends(self, peer: str = "gw") -> dict[str, str]:
        """Map each of a peer's ended jobs to `ended` or its error code; asserts that none ended twice."""
        ends: dict[str, str] = {}
        for message in self.told[peer]:
            if isinstance(message, Ended | Failed):
                for item in message.items:
                    assert item.job not in ends, f"{item.job} ended twice"
                    ends[item.job] = "ended" if isinstance(item, EndedItem) else item.code.value
        return ends

    def sent_to(self, name: str, kind: type[M]) -> list[M]:
        """Return the messages of a kind that a child was sent, over all its lives."""
        return [m for n, m in self.sent if n == name and isinstance(m, kind)]

    def check(self) -> None:
        """Assert the invariants that hold after every event."""
        host = self.machine.host
        for model in host.models.values():
            for first, replica in model.replicas.items():
                assert first == replica.devices[0]
                assert len(replica.devices) == model.profile.min_devices
                is_coming_together = any(set(replica.devices) <= set(r.team) for r in host.regroups)
                assert is_coming_together or not host.must_regroup(replica.devices)
                running = [e for e in host.jobs.running_on(replica.device) if e.job.model == model.id]
                assert replica.running == len(running) <= replica.plan.parallel
            assert host.jobs.running(model.id) == sum(r.running for r in model.replicas.values())
        for device in host.devices:
            holders = host.residents(device)
            assert bool(host.ledger.reserved_mb(device)) == bool(holders)
            capacity = host.ledger.capacity_mb(device)
            assert capacity is None or host.ledger.reserved_mb(device) <= capacity
        held = [r.host_mb for m in host.models.values() for r in m.replicas.values()]
        assert host.ledger.reserved_mb(HOST) == sum(held) <= host.settings.host_memory_mb
        for want in host.wants.values():
            assert not want.at or want.plan is not None
