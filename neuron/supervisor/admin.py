"""What neuronctl and gateways ask of the host: questions, loads, drains, restarts. Each is answered exactly once."""

from dataclasses import dataclass, field

from common import __version__
from common.errors import Code
from common.messages import (
    PROTOCOL_VERSION,
    CacheCleared,
    Claim,
    Claimed,
    ClearCache,
    ClearModelCache,
    Discover,
    DiscoverReply,
    Done,
    Drain,
    Effective,
    EffectiveReply,
    EventsReply,
    Health,
    HealthReply,
    JobRow,
    Join,
    Load,
    Memory,
    MemoryReply,
    MemoryView,
    Models,
    ModelsReply,
    Pause,
    Pin,
    ReadEvents,
    ReadLog,
    Refused,
    ReportMemory,
    RestartWorker,
    Resume,
    Status,
    StatusReply,
    Undrain,
    Unload,
    Unpin,
    Version,
    VersionReply,
    WorkerMemory,
)
from neuron.broker.claims import Claims
from neuron.supervisor import effective, report
from neuron.supervisor.child import Happening
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import STRANGERS, Inspection
from neuron.supervisor.instructions import TellLog
from neuron.supervisor.placement import Placement
from neuron.supervisor.renewal import Renewal
from neuron.supervisor.states import State

GATHER_S = 2.0
"""Workers that do not answer a question within this time are left out of the reply."""

AdminRequest = (
    Claim | Status | Discover | Health | Models | Effective | Version | Load | Unload | Pin | Unpin | ClearCache
    | Memory | Drain | Undrain | Pause | Resume | RestartWorker | ReadEvents | ReadLog | Join
)  # fmt: skip


@dataclass(slots=True)
class _Question:
    """One request whose answer is gathered from several workers."""

    peer: str
    request: str
    pending: set[str]
    is_memory: bool
    memories: list[WorkerMemory] = field(default_factory=list)
    sequences: int = 0


class Admin:
    """Answers admin requests. Drains and unloads are begun here and settled by the machine when jobs have ended."""

    def __init__(self, host: Host, inspection: Inspection, placement: Placement, renewal: Renewal) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement
        self._renewal = renewal
        self.claims = Claims()
        self._questions: dict[str, _Question] = {}
        self.restarts: dict[str, list[tuple[str, str]]] = {}
        """By device: who waits for its worker's return."""
        self.device_drains: dict[str, list[tuple[str, str]]] = {}
        """By device: who waits for its last job."""
        self.node_drains: list[tuple[str, str]] = []

    def handle(self, peer: str, message: AdminRequest) -> list[tuple[str, Happening]]:
        """Carry out a request; return (device, happening) pairs for the workers' lives."""
        host = self._host
        match message:
            case Status():
                host.tell(peer, self._status(message.request))
            case Discover():
                devices = [report.device_state(host, d) for d in host.devices]
                host.tell(peer, DiscoverReply(request=message.request, devices=devices))
            case Health():
                status, reasons = report.health(host)
                host.tell(peer, HealthReply(request=message.request, status=status, reasons=reasons))
            case Models():
                models = [report.model_state(host, m) for m in host.models.values()]
                host.tell(peer, ModelsReply(request=message.request, models=models))
            case Effective():
                self._effective(peer, message)
            case Version():
                host.tell(peer, VersionReply(request=message.request, version=__version__, protocol=PROTOCOL_VERSION,
                                             build=report.build(host)))  # fmt: skip
            case ReadEvents():
                events = host.journal.since(message.since, host.now)
                host.tell(peer, EventsReply(request=message.request, incarnation=host.incarnation, events=events))
            case ReadLog():
                if message.child in ("prep", "probe") or self._is_served(peer, message.request, message.child):
                    host.out.append(TellLog(peer, message.request, message.child, message.since))
            case Claim():
                choice = self.claims.record(message.model, message.choice, message.refused, host.now)
                host.tell(peer, Claimed(request=message.request, model=message.model, choice=choice))
            case Load():
                self._load(peer, message)
            case Unload():
                self._unload(peer, message)
            case Pin() | Unpin():
                self._pin(peer, message)
            case Memory():
                self._ask(peer, message.request, None)
            case ClearCache():
                self._ask(peer, message.request, message)
            case Drain():
                return self._drain(peer, message)
            case Undrain():
                return self._undrain(peer, message)
            case Pause():
                return self._pause(peer, message)
            case Resume():
                return self._resume(peer, message)
            case RestartWorker():
                return self._restart(peer, message)
            case Join():  # of an invited peer it would not have come this far
                self._refuse(peer, message.request, Code.PERMISSION_DENIED, "there is no such invitation here")
        return []

    def _refuse(self, peer: str, request: str, code: Code, text: str) -> None:
        self._host.tell(peer, Refused(request=request, code=code, message=text))

    def _status(self, request: str) -> StatusReply:
        host = self._host
        rows = [
            JobRow(
                job=e.job.id,
                attempt=e.job.attempt,
                request_id=e.job.request_id,
                model=e.job.model,
                state="preparing" if e.state == "waiting" else e.state,
                device=e.device,
                age_ms=int((host.now - e.accepted_at) * 1000),
                principal=e.job.principal,
            )
            for e in host.jobs.entries()
        ]
        return StatusReply(
            request=request,
            state=report.node_state(host, 0),
            jobs=rows,
            peers=len(host.peers.gateways()),
            undecodable=host.undecodable,
        )

    def _load(self, peer: str, message: Load) -> None:
        host = self._host
        name = host.aliases.get(message.model, message.model)
        if message.profile is not None:
            if not self._inspection.takes(message.profile):
                text = f"this neuron knows {STRANGERS} models that gateways have told of, and takes no more of them"
                self._refuse(peer, message.request, Code.NO_CAPACITY, text)
                return
            model = self._inspection.adopt(message.profile, own=False)
        elif name in host.models:
            model = host.models[name]
        else:
            known = ", ".join(host.models) or "none"
            self._refuse(peer, message.request, Code.MODEL_NOT_FOUND, f"no model '{name}' here; known: {known}")
            return
        if model.draining:
            self._refuse(peer, message.request, Code.MODEL_UNLOADED, f"model '{model.id}' is being drained; undrain it")
            return
        if message.replace and model.replicas:
            self._renewal.replace(model, message, peer)
            return
        self._placement.load(model, message, peer)

    def _effective(self, peer: str, message: Effective) -> None:
        host = self._host
        model = host.models.get(host.aliases.get(message.model, message.model))
        if model is None:
            known = ", ".join(host.models) or "none"
            text = f"no model '{message.model}' here; known: {known}"
            self._refuse(peer, message.request, Code.MODEL_NOT_FOUND, text)
            return
        rows = effective.settings(host, model)
        host.tell(peer, EffectiveReply(request=message.request, model=model.id, settings=rows))

    def _unload(self, peer: str, message: Unload) -> None:
        host = self._host
        model = host.models.get(host.aliases.get(message.model, message.model))
        if model is None:
            self._refuse(peer, message.request, Code.MODEL_NOT_FOUND, f"no model '{message.model}' here")
            return
        self._retire(model.id, message.device, peer, message.request)

    def _pin(self, peer: str, message: Pin | Unpin) -> None:
        host = self._host
        model = host.models.get(host.aliases.get(message.model, message.model))
        if model is None:
            self._refuse(peer, message.request, Code.MODEL_NOT_FOUND, f"no model '{message.model}' here")
            return
        model.pinned = isinstance(message, Pin)
        host.is_dirty = True
        text = "is never unloaded to make room" if model.pinned else "may be unloaded to make room"
        host.tell(peer, Done(request=message.request, text=f"{model.id} {text}"))

    def _retire(self, model_id: str, device: str | None, peer: str, request: str) -> None:
        """Mark replicas as leaving; the request is answered when the first of them is gone, which is the last asked."""
        host = self._host
        model = host.models[model_id]
        for parked_on, models in host.parked.items():
            if model_id in models and device in (None, parked_on):
                models.remove(model_id)  # it is not to come back with its device
                host.is_dirty = True
        targets = [r for r in model.replicas.values() if device is None or device in r.devices]
        if not targets:
            where = f" on {device}" if device else ""
            host.tell(peer, Done(request=request, text=f"{model_id} is not loaded{where}"))
            return
        for replica in targets:
            self._placement.retire(model, replica)
        targets[-1].waiters.append((peer, request))
        if all(r.leaving for r in model.replicas.values()):
            model.unload_barrier = host.jobs.last_serial

    def _ask(self, peer: str, request: str, clear: ClearCache | None) -> None:
        host = self._host
        ready = [d for d, w in host.workers.items() if w.state in (State.READY, State.DRAINING)]
        token = host.new_id()
        self._questions[token] = _Question(peer, request, set(ready), clear is None)
        for device in ready:
            ask = ReportMemory(request=token) if clear is None else ClearModelCache(request=token, model=clear.model)
            host.tell_worker(device, ask)
        if ready:
            host.wake_in(f"question:{token}", GATHER_S)
        else:
            self._answer(token)

    def worker_answered(self, device: str, message: MemoryView | CacheCleared) -> None:
        """Collect one worker's answer; reply when it is the last."""
        question = self._questions.get(message.request)
        if question is None or device not in question.pending:
            return
        question.pending.discard(device)
        if isinstance(message, MemoryView):
            question.memories.append(message.memory)
        else:
            question.sequences += message.sequences
        if not question.pending:
            self._answer(message.request)

    def question_timed_out(self, token: str) -> None:
        """Reply with what has come in."""
        if token in self._questions:
            self._answer(token)

    def _answer(self, token: str) -> None:
        question = self._questions.pop(token)
        if question.is_memory:
            self._host.tell(question.peer, MemoryReply(request=question.request, workers=question.memories))
        else:
            text = f"{question.sequences} cached sequences forgotten"
            self._host.tell(question.peer, Done(request=question.request, text=text))

    def _drain(self, peer: str, message: Drain) -> list[tuple[str, Happening]]:
        host = self._host
        if not self._is_target_known(peer, message):
            return []
        host.is_dirty = True
        if message.scope == "node":
            host.draining = True
            self.node_drains.append((peer, message.request))
            host.say("info", "draining the node")
        elif message.scope == "model":
            assert message.target is not None
            model = host.models[host.aliases.get(message.target, message.target)]
            model.draining = True
            self._retire(model.id, None, peer, message.request)
        else:
            assert message.target is not None
            host.draining_devices.add(message.target)
            self.device_drains.setdefault(message.target, []).append((peer, message.request))
            return [(message.target, "drain")]
        return []

    def _undrain(self, peer: str, message: Undrain) -> list[tuple[str, Happening]]:
        host = self._host
        if not self._is_target_known(peer, message):
            return []
        host.is_dirty = True
        host.tell(peer, Done(request=message.request, text=f"{message.target or 'the node'} takes work again"))
        if message.scope == "node":
            host.draining = False
            self._call_off(self.node_drains, "the node")
        elif message.scope == "model":
            assert message.target is not None
            host.models[host.aliases.get(message.target, message.target)].draining = False
        else:
            assert message.target is not None
            self._take_back(message.target)
            return [(message.target, "undrain")]
        return []

    def _take_back(self, device: str) -> None:
        host = self._host
        host.draining_devices.discard(device)
        host.paused.pop(device, None)
        host.is_dirty = True
        self._call_off(self.device_drains.pop(device, []), device)

    def _call_off(self, drains: list[tuple[str, str]], what: str) -> None:
        """Answer those who wait for a drain that ends before its last job has."""
        for peer, request in drains:
            self._refuse(peer, request, Code.ABORTED, f"the drain of {what} was called off")
        drains.clear()

    def _pause(self, peer: str, message: Pause) -> list[tuple[str, Happening]]:
        host, device = self._host, message.device
        if not self._is_served(peer, message.request, device):
            return []
        host.pause(device, message.for_s)
        self.device_drains.setdefault(device, []).append((peer, message.request))
        host.say("info", "pausing device", device=device, for_s=message.for_s)
        return [(device, "drain")]

    def _resume(self, peer: str, message: Resume) -> list[tuple[str, Happening]]:
        if not self._is_served(peer, message.request, message.device):
            return []
        was_paused = message.device in self._host.paused
        text = f"{message.device} takes work again" if was_paused else f"{message.device} is not paused"
        self._host.tell(peer, Done(request=message.request, text=text))
        return self.end_pause(message.device)

    def end_pause(self, device: str) -> list[tuple[str, Happening]]:
        """Take a device back that is paused; return what happens to its worker."""
        if device not in self._host.paused:
            return []
        self._take_back(device)
        return [(device, "undrain")]

    def _is_target_known(self, peer: str, message: Drain | Undrain) -> bool:
        host, target = self._host, message.target
        if message.scope == "model" and host.aliases.get(target or "", target) not in host.models:
            self._refuse(peer, message.request, Code.MODEL_NOT_FOUND, f"no model '{target}' here")
            return False
        return message.scope != "device" or self._is_served(peer, message.request, target)

    def _is_served(self, peer: str, request: str, device: str | None) -> bool:
        if device in self._host.workers:
            return True
        known = ", ".join(self._host.workers)
        self._refuse(peer, request, Code.NOT_FOUND, f"no served device '{device}' here; there are: {known}")
        return False

    def _restart(self, peer: str, message: RestartWorker) -> list[tuple[str, Happening]]:
        host = self._host
        if not self._is_served(peer, message.request, message.device):
            return []
        host.problems.pop(message.device, None)
        self._take_back(message.device)
        self.restarts.setdefault(host.owner(message.device), []).append((peer, message.request))
        return [(message.device, "restart")]
