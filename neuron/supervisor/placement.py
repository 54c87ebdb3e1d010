"""Which model is loaded where: inspection, choice of a device, load, unload, and the return after a death."""

from common.catalogue import Profile
from common.errors import Code
from common.messages import (
    Done,
    Inspect,
    Inspected,
    InspectFailed,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    Progress,
    Refused,
    UnloadModel,
)
from neuron.memory.estimate import IDLE_SEQUENCES, MemoryPlan, plan_memory
from neuron.memory.residency import Model, Replica
from neuron.supervisor.host import Host
from neuron.supervisor.instructions import ResolveSource
from neuron.supervisor.states import State

FAULT_MEMORY_S = 2.0
"""A model that cannot be served is looked at again when it is asked for after this time: the file may have come."""


class Placement:
    """Moves models on and off devices. Never touches jobs: those whose state changes are returned by model id."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._fault_at: dict[str, float] = {}
        self._preload = {host.aliases.get(name, name) for name in host.settings.preload}
        """Models of the preload that have not been loaded yet."""
        self._asked: dict[str, list[tuple[str, str, str | None]]] = {}
        """By model: (peer, request, device) of loads that wait for the inspection; peer "" is the preload."""

    def adopt(self, profile: Profile, *, own: bool) -> Model:
        """Take a profile into the catalogue; one whose model is resident keeps what it was loaded with."""
        host = self._host
        known = host.models.get(profile.id)
        if known is None or (not known.is_own and not known.replicas and known.profile != profile):
            known = host.models[profile.id] = Model(profile, own, pinned=host.settings.name in profile.pinned_on)
            host.is_dirty = True
        return known

    def inspect(self, model: Model) -> None:
        """Find the model's file and have prep read its header, unless that is known or under way."""
        host = self._host
        if model.inspecting or model.facts is not None:
            return
        model.inspecting = True
        host.out.append(ResolveSource(model.id, model.profile.source))

    def source_resolved(self, model: Model, path: str | None, error: str | None) -> bool:
        """Go on with the inspection; return True if it has ended, with a fault."""
        if path is None:
            self._settle(model, error or "its file was not found")
            return True
        model.path = path
        if self._host.prep.state is State.READY:
            self._host.tell_prep(Inspect(model=model.id, path=path))
        return False

    def prep_came_up(self) -> None:
        """Ask a new prep process again what the old one did not answer."""
        for model in self._host.models.values():
            if model.inspecting and model.path is not None:
                self._host.tell_prep(Inspect(model=model.id, path=model.path))

    def inspected(self, message: Inspected | InspectFailed) -> Model | None:
        """Record what prep found out about a model; return the model."""
        model = self._host.models.get(message.model)
        if model is None or not model.inspecting:
            return None
        if isinstance(message, InspectFailed):
            self._settle(model, message.message)
        else:
            model.facts = message.facts
            self._foresee(model)
            self._settle(model, None)
        return model

    def _foresee(self, model: Model) -> None:
        """Tell from the header whether the model can ever be held here, and with which sizes."""
        assert model.facts is not None
        model.plan, model.shortfall = None, "no device of this host is served"
        for device in self._host.workers:
            found = plan_memory(model.profile, model.facts, self._host.ledger.capacity_mb(device))
            if not isinstance(found, MemoryPlan):
                model.shortfall = found if model.plan is None else None
            elif model.plan is None or found.kv_tokens > model.plan.kv_tokens:
                model.plan, model.shortfall = found, None

    def _settle(self, model: Model, fault: str | None) -> None:
        host = self._host
        model.inspecting, model.fault = False, fault
        host.is_dirty = True
        if fault is not None:
            self._fault_at[model.id] = host.now
            host.say("error", "model cannot be served", model=model.id, why=fault)
        for peer, request, device in self._asked.pop(model.id, []):
            self.load(model, device, peer, request)

    def is_fault_fresh(self, model: Model) -> bool:
        """Say whether the model's fault is recent enough to be believed without another look."""
        return model.fault is not None and self._host.now - self._fault_at.get(model.id, 0.0) < FAULT_MEMORY_S

    def look_again(self, model: Model) -> None:
        """Forget an old fault and inspect the model once more."""
        model.fault, model.facts, model.path = None, None, None
        self.inspect(model)

    def load(self, model: Model, device: str | None, peer: str = "", request: str = "") -> None:
        """Load a model because an admin, a gateway or the preload asks for it; answered when it is loaded."""
        host = self._host
        if model.fault is not None and not self.is_fault_fresh(model):
            self.look_again(model)
        if model.facts is None and model.fault is None:
            self._asked.setdefault(model.id, []).append((peer, request, device))
            self.inspect(model)
            return
        targets = [r for r in model.replicas.values() if device in (None, r.device)]
        error = None
        if any(r.status == "unloading" for r in targets):
            error = Code.MODEL_UNLOADED, f"model '{model.id}' is being unloaded; try again"
        elif not targets:
            error = self.want(model, device)
            targets = [r for r in model.replicas.values() if device in (None, r.device)]
        else:
            self._keep(model, targets)
        if error is not None:
            if peer:
                host.tell(peer, Refused(request=request, code=error[0], message=error[1]))
            else:
                host.say("error", "model is not preloaded", model=model.id, why=error[1])
        elif peer:
            loaded = next((r for r in targets if r.status == "loaded"), None)
            if loaded is not None:
                host.tell(peer, Done(request=request, text=f"{model.id} is loaded on {loaded.device}"))
            else:
                targets[0].waiters.append((peer, request))

    def _keep(self, model: Model, targets: list[Replica]) -> None:
        """Call off an unload that was still waiting for jobs: the later wish counts."""
        for replica in targets:
            if replica.leaving:
                replica.leaving, model.unload_barrier = False, None
                text = f"the unload of {model.id} was called off by a later load"
                self._answer(replica, Refused(code=Code.ABORTED, message=text))

    def want(self, model: Model, device: str | None = None) -> tuple[Code, str] | None:
        """See to it that a replica is coming, on `device` or on the best one; return why that is not possible."""
        host = self._host
        if model.fault is not None:
            return Code.MODEL_LOADING_FAILED, f"model '{model.id}' cannot be loaded: {model.fault}"
        if device is None and model.is_coming():
            return None
        assert model.facts is not None, "want() needs the inspected file"
        if device is not None and device not in host.devices:
            return Code.NOT_FOUND, f"no device '{device}' here; there are: {', '.join(host.devices)}"
        candidates = [d for d in ([device] if device else list(host.devices)) if host.can_serve(d)]
        if not candidates:
            reasons = "; ".join(f"{d}: {host.why_not(d)}" for d in ([device] if device else host.devices))
            return Code.DEVICE_UNAVAILABLE, f"no device can take model '{model.id}' now ({reasons})"
        best, plan, shortfall = None, None, ""
        for candidate in (c for c in candidates if c not in model.replicas):
            free = host.ledger.free_mb(candidate)
            found = plan_memory(model.profile, model.facts, free)
            if not isinstance(found, MemoryPlan):
                shortfall = f"{candidate}: {found}"
            elif best is None or (free or 0) > (host.ledger.free_mb(best) or 0):
                best, plan = candidate, found
        if best is None or plan is None:
            return Code.NO_CAPACITY, f"no room for model '{model.id}' ({shortfall or 'it is already on every device'})"
        host.ledger.reserve(best, model.id, plan.memory_mb)
        model.replicas[best] = Replica(best, plan, progress=0.0, since=host.now, memory_mb=plan.memory_mb)
        host.is_dirty = True
        host.say("info", "loading model", model=model.id, device=best, memory_mb=plan.memory_mb)
        if host.workers[best].state is State.READY:
            self._send_load(model, best)
        return None

    def _send_load(self, model: Model, device: str) -> None:
        assert model.path is not None
        replica = model.replicas[device]
        replica.since, replica.progress = self._host.now, 0.0
        self._host.tell_worker(
            device,
            LoadModel(
                model=model.id,
                path=model.path,
                context=replica.plan.context,
                kv_tokens=replica.plan.kv_tokens,
                parallel=replica.plan.parallel,
                idle_sequences=IDLE_SEQUENCES,
                host_cache_mb=self._host.settings.host_cache_mb // len(self._host.workers),
            ),
        )

    def worker_came_up(self, device: str) -> None:
        """Load again at once what was resident, pinned by the preload first, then by age."""
        host = self._host
        for model_id in host.parked.pop(device, []):
            model = host.models[model_id]
            if not model.is_coming() and model.facts is not None:
                error = self.want(model, device)
                if error is not None:
                    host.say("warning", "model is not loaded again", model=model_id, device=device, why=error[1])
        for model_id in self._preload & set(host.models):
            if host.models[model_id].facts is not None:
                self.load(host.models[model_id], None)
        resident = [m for m in host.models.values() if device in m.replicas]
        first = host.settings.preload
        resident.sort(key=lambda m: first.index(m.id) if m.id in first else len(first))
        for model in resident:
            replica = model.replicas[device]
            if replica.status in ("recovering", "loading"):
                self._send_load(model, device)

    def worker_died(self, device: str) -> None:
        """Mark what the worker held as recovering; an unload that was under way is done."""
        for model in list(self._host.models.values()):
            replica = model.replicas.get(device)
            if replica is None:
                continue
            if replica.status == "unloading" or replica.leaving:
                self._remove(model, device, f"{model.id} is unloaded from {device}: its worker ended")
            elif replica.status == "loaded":
                replica.status = "recovering"
                replica.prefixes.clear()
            replica.running, replica.progress = 0, None

    def park(self, device: str) -> list[Model]:
        """Take everything off a device that stays down; return the models that have lost a replica."""
        host = self._host
        lost = [m for m in host.models.values() if device in m.replicas]
        parked = host.parked.setdefault(device, [])
        parked += [m.id for m in lost if m.replicas[device].status != "unloading" and m.id not in parked]
        for model in lost:
            self._remove(model, device, None, f"{device} does not serve: {host.why_not(device) or 'stopped'}")
        return lost

    def progressed(self, device: str, message: LoadProgress) -> None:
        """Record how far a load is, for the state and for those who wait."""
        replica = self._replica(message.model, device)
        if replica is not None:
            replica.progress = message.progress
            self._host.is_dirty = True
            for peer, request in replica.waiters:
                text = f"loading {message.model} on {device}"
                self._host.tell(peer, Progress(request=request, text=text, fraction=message.progress))

    def loaded(self, device: str, message: Loaded) -> Model | None:
        """Record a completed load; return the model."""
        host, replica = self._host, self._replica(message.model, device)
        if replica is None or replica.status not in ("loading", "recovering"):
            return None
        model = host.models[message.model]
        self._preload.discard(model.id)
        replica.status, replica.progress = "loaded", None
        replica.load_s = host.now - replica.since
        replica.memory_mb = max(message.memory_mb, model.profile.vram_mb or 0)
        host.ledger.reconcile(device, model.id, replica.memory_mb)
        host.is_dirty = True
        host.say("info", "model loaded", model=model.id, device=device, seconds=round(replica.load_s, 2),
                 memory_mb=message.memory_mb, kv_tokens=message.kv_tokens)  # fmt: skip
        self._answer(replica, Done(request="", text=f"{model.id} is loaded on {device} in {replica.load_s:.1f} s"))
        return model

    def load_failed(self, device: str, message: LoadFailed) -> Model | None:
        """Take the failed replica away and remember why; return the model."""
        if self._replica(message.model, device) is None:
            return None
        model = self._host.models[message.model]
        model.fault = message.message
        self._fault_at[model.id] = self._host.now
        self._host.say("error", "model failed to load", model=model.id, device=device, why=message.message)
        self._remove(model, device, None, f"{model.id} cannot be loaded: {message.message}")
        return model

    def begin_unload(self, model: Model, device: str) -> None:
        """Have the worker free a replica that has no running job."""
        replica = model.replicas[device]
        assert replica.running == 0, f"{model.id} on {device} still has jobs"
        replica.status, replica.since = "unloading", self._host.now
        self._host.is_dirty = True
        if self._host.workers[device].state in (State.READY, State.DRAINING):
            self._host.tell_worker(device, UnloadModel(model=model.id))
        else:
            self._remove(model, device, f"{model.id} is unloaded from {device}")

    def unloaded(self, device: str, model_id: str) -> Model | None:
        """Record a completed unload; return the model."""
        replica = self._replica(model_id, device)
        if replica is None or replica.status != "unloading":
            return None
        model = self._host.models[model_id]
        self._remove(model, device, f"{model_id} is unloaded from {device}")
        self._host.say("info", "model unloaded", model=model_id, device=device)
        return model

    def _remove(self, model: Model, device: str, done: str | None, failed: str = "") -> None:
        replica = model.replicas.pop(device)
        self._host.ledger.release(device, model.id)
        self._host.is_dirty = True
        if done is not None:
            self._answer(replica, Done(request="", text=done))
        else:
            self._answer(replica, Refused(code=Code.MODEL_LOADING_FAILED, message=failed))

    def _answer(self, replica: Replica, reply: Done | Refused) -> None:
        for peer, request in replica.waiters:
            if isinstance(reply, Done):
                self._host.tell(peer, Done(request=request, text=reply.text))
            else:
                self._host.tell(peer, Refused(request=request, code=reply.code, message=reply.message))
        replica.waiters.clear()

    def _replica(self, model_id: str, device: str) -> Replica | None:
        model = self._host.models.get(model_id)
        return model.replicas.get(device) if model is not None else None
