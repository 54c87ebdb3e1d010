"""Which model is loaded where: choice of a device, load, unload, and the return after a death."""

from collections.abc import Iterable

from msgspec import structs

from common.engine_options import EngineOptions
from common.errors import Code
from common.messages import (
    Done,
    LaneLoad,
    Load,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    Progress,
    Refused,
    Unloaded,
    UnloadModel,
)
from neuron.memory.estimate import IDLE_SEQUENCES, MemoryPlan, is_embedding
from neuron.memory.ledger import HOST
from neuron.memory.residency import Model, Replica, host_key, share
from neuron.supervisor.host import Host, Regroup
from neuron.supervisor.inspection import FAULT_MEMORY_S, Inspection, correction_key
from neuron.supervisor.room import Rooms
from neuron.supervisor.states import State
from neuron.supervisor.wants import Failure, Wants

LOAD_DEATHS = 2
"""Workers that a model's load may end before it is given up."""
LEAVES = {"room": "another model needs its memory", "ttl": "nobody used it for its ttl_s", "admin": "asked for"}
KEPT_MB = 512
"""Less than this, or than a tenth of a model, is other programs' doing, or the driver's own: the first load of a worker
brings kernels and work areas onto the device, which stay."""
LEAST_CORRECTION_MB = 256
"""By which an estimate grows, or by an eighth, when a load has run out of memory."""
OUT_OF_MEMORY_S = 30.0
"""For so long a model that ran out of memory twice is not tried again."""


def _engine(model: Model, plan: MemoryPlan) -> EngineOptions:
    """Return the options to load with: the profile's, with the layers that were chosen to fit."""
    options = model.profile.engine
    return options if plan.gpu_layers is None else structs.replace(options, n_gpu_layers=plan.gpu_layers)


class Placement:
    """Moves models on and off devices. Never touches jobs: those whose state changes are returned by model id."""

    def __init__(self, host: Host, inspection: Inspection) -> None:
        self._host = host
        self._inspection = inspection
        self.wants = Wants(host, Rooms(host), inspection.inspect, self._start, self._bring_back)
        self._preload = {host.aliases.get(name, name) for name in host.settings.preload}
        """Models of the preload that have not been loaded yet."""
        self._asked: dict[str, list[tuple[str, Load]]] = {}
        """By model: loads that wait for the inspection, and the peer that asks; "" is the neuron itself."""

    def inspection_ended(self, model: Model) -> None:
        """Go on with the loads that waited for the model's file."""
        for peer, message in self._asked.pop(model.id, []):
            self.load(model, message, peer)

    def fetch_moved(self, model: Model, progress: float) -> None:
        """Tell those who asked for a load how much of its file has come."""
        for peer, message in self._asked.get(model.id, []):
            if peer:
                text = f"fetching {model.profile.source}"
                self._host.tell(peer, Progress(request=message.request, text=text, fraction=progress))

    def is_preload(self, model: str) -> bool:
        """Say whether a model is to be loaded at the start, and has not been yet."""
        return model in self._preload

    def load_again(self, model: Model, device: str | None = None) -> None:
        """Load a model on the neuron's own account, where nothing has to give way for it."""
        self.load(model, Load(request="", model=model.id, device=device, may_evict=False))

    def summon(self, model: Model) -> Failure | None:
        """Have a model come for the jobs that wait for it; return why that is not possible."""
        if model.facts is None and model.fault is None:  # its profile has changed meanwhile
            self.load(model, Load(request="", model=model.id))
            return None
        return self.wants.ask(model)

    def load(self, model: Model, message: Load, peer: str = "") -> None:
        """Load a model because an admin or a gateway asks for it; answered when it is loaded."""
        host, device = self._host, message.device
        if model.fault is not None and not self._inspection.is_fault_fresh(model):
            self._inspection.look_again(model)
        if model.facts is None and model.fault is None:
            self._asked.setdefault(model.id, []).append((peer, message))
            self._inspection.inspect(model)
            return
        targets = self._targets(model, device)
        error = None
        if targets:
            self._keep(model, targets)
        else:
            error = self.wants.ask(model, device, may_evict=message.may_evict)
        if error is not None:
            if peer:
                host.tell(peer, Refused(request=message.request, code=error[0], message=error[1]))
            else:
                host.say("warning", "model is not loaded", model=model.id, device=device, why=error[1])
        elif peer:
            self._wait(model, device, [(peer, message.request)])

    def _wait(self, model: Model, device: str | None, waiters: list[tuple[str, str]]) -> None:
        """Have requests wait for a load that is under way, or for the room for it."""
        targets = self._targets(model, device)
        loaded = next((r for r in targets if r.status == "loaded"), None)
        if loaded is not None:
            for peer, request in waiters:
                self._host.tell(peer, Done(request=request, text=f"{model.id} is loaded on {loaded.place}"))
        elif targets:
            targets[0].waiters += waiters
        else:
            self._host.wants[model.id, device].waiters += waiters

    @staticmethod
    def _targets(model: Model, device: str | None) -> list[Replica]:
        return [r for r in model.replicas.values() if (device is None or device in r.devices) and not r.is_going]

    def _keep(self, model: Model, targets: list[Replica]) -> None:
        """Call off an unload that was still waiting for jobs: the later wish counts."""
        for replica in targets:
            if replica.leaving:
                replica.leaving, model.unload_barrier = False, None
                text = f"the unload of {model.id} was called off by a later load"
                self._answer(replica, Refused(code=Code.ABORTED, message=text))

    def retire(self, model: Model, replica: Replica) -> None:
        """Have a replica leave because an admin asks for it: once it is loaded, and idle."""
        if replica.status in ("loading", "recovering") and not replica.leaving:
            text = f"the load of {model.id} was called off by a later unload"
            self._answer(replica, Refused(code=Code.ABORTED, message=text))
        replica.leaving, replica.makes_room_for, replica.leaves_for = True, None, "admin"
        self._host.leaving.add(model.id)
        self._host.is_dirty = True

    def _start(self, model: Model, devices: tuple[str, ...], plan: MemoryPlan) -> None:
        host = self._host
        replica = Replica(devices, plan, progress=0.0, since=host.now)
        replica.memory_mb, replica.host_mb = plan.memory_mb, plan.host_mb
        for device in devices:
            host.ledger.reserve(device, model.id, replica.share_mb)
        host.ledger.reserve(HOST, host_key(model.id, devices), plan.host_mb)
        model.replicas[replica.device] = replica
        model.plan, model.unloaded_because = plan, None
        host.is_dirty = True
        host.say("info", "loading model", model=model.id, device=replica.place, memory_mb=plan.memory_mb)
        if host.must_regroup(devices):
            host.regroups.append(Regroup(host.affected(devices), devices))
        elif host.worker(replica.device).state is State.READY and not host.is_regrouping(replica.device):
            self._send_load(model, replica)

    def _send_load(self, model: Model, replica: Replica) -> None:
        assert model.path is not None
        host, owned = self._host, self._host.members(self._host.owner(replica.device))
        replica.since, replica.progress = host.now, 0.0
        host.tell_worker(
            replica.device,
            LoadModel(
                model=model.id,
                path=model.path,
                context=replica.plan.context,
                kv_tokens=replica.plan.kv_tokens,
                parallel=replica.plan.parallel,
                is_embedding=is_embedding(model.facts),
                idle_sequences=IDLE_SEQUENCES,
                devices=[owned.index(d) for d in replica.devices] if len(owned) > 1 else [],
                engine=_engine(model, replica.plan),
            ),
        )

    def worker_came_up(self, owner: str) -> None:
        """Load again at once what was resident: who is pinned first, then by class, preload and last use."""
        host, devices = self._host, self._host.members(owner)
        for device in devices:
            for model_id in host.parked.pop(device, []):
                if not host.models[model_id].is_coming():
                    self.load_again(host.models[model_id], device)
        for model_id in self._preload & set(host.models):
            if host.models[model_id].facts is not None:
                self.load_again(host.models[model_id])
        for model, replica in self._by_rank(host.residents(*devices)):
            if replica.status in ("recovering", "loading") and not host.is_regrouping(owner):
                self._send_load(model, replica)

    def _by_rank(self, residents: list[tuple[Model, Replica]]) -> list[tuple[Model, Replica]]:
        """Return replicas in the order in which they are to be back."""
        first = [self._host.aliases.get(name, name) for name in self._host.settings.preload]

        def rank(resident: tuple[Model, Replica]) -> tuple[bool, int, int, float]:
            model, replica = resident
            place = first.index(model.id) if model.id in first else len(first)
            return not model.pinned, -model.profile.residency_priority, place, -replica.used_at

        return sorted(residents, key=rank)

    def move(self, model: Model) -> None:
        """Load a model that has lost its device elsewhere on this host, where nobody has to give way for it."""
        if not model.is_coming() and not model.draining and model.fault is None:
            self.load_again(model)

    def worker_died(self, owner: str, cause: str, *, is_fault: bool) -> Model | None:
        """Mark what the worker held as recovering; an unload that was under way is done.

        `is_fault`: it ended by itself, or hung; a kill from outside, or one that was asked for, blames no model.

        Returns the model whose load is to blame, if it is: it is not tried again, so that one bad file does not take
        one device after another out of service.
        """
        devices = self._host.members(owner)
        for device in devices:
            self._host.ledger.restore(device)
        culprit = self._loading_at_death(owner) if is_fault else None
        for model, replica in self._host.residents(*devices):
            if replica.status == "unloading" or replica.leaving:
                self._remove(model, replica, f"{model.id} is unloaded from {replica.place}: its worker ended")
            elif replica.status == "loaded":
                replica.status = "recovering"
                replica.prefixes.clear()
            replica.running, replica.progress = 0, None
        if culprit is None or culprit.load_deaths < LOAD_DEATHS:
            return None
        return self.load_failed(
            owner,
            LoadFailed(
                model=culprit.id,
                code=Code.MODEL_LOADING_FAILED,
                message=f"its load ended {culprit.load_deaths} workers ({cause}); look at the file and the log",
            ),
        )

    def _loading_at_death(self, owner: str) -> Model | None:
        """Strike and return the model that a worker was loading when it ended."""
        host = self._host
        has_begun = owner in host.hellos  # before its hello a worker is not asked to load anything
        residents = host.residents(*host.members(owner))
        loading = [(m, r) for m, r in residents if r.status == "loading"]
        if not loading or not has_begun or host.is_regrouping(owner):
            return None
        is_loading = host.workers[owner].phase in ("loading", "warming")
        if not is_loading and any(r.running for _, r in residents):
            return None  # as likely a job's doing
        # A worker loads in the order it was asked to.
        culprit = min(loading, key=lambda pair: pair[1].since)[0]
        culprit.load_deaths += 1
        return culprit

    def park(self, device: str) -> list[Model]:
        """Take everything off a device that stays down; return the models that have lost a replica."""
        host = self._host
        lost = self._by_rank(host.residents(device))
        parked = host.parked.setdefault(device, [])
        parked += [m.id for m, r in lost if r.status != "unloading" and m.id not in parked]
        for model, replica in lost:
            self._remove(model, replica, None, f"{device} does not serve: {host.why_not(device) or 'stopped'}")
        return [m for m, _ in lost]

    def give_back(self, model: Model, replica: Replica) -> None:
        """Take a replica away whose devices no longer have one owner, or whose owner has the model twice."""
        text = f"{replica.place} got another worker"
        model.unloaded_because = text
        self._remove(model, replica, None, text)

    def progressed(self, owner: str, message: LoadProgress) -> None:
        """Record how far a load is, for the state and for those who wait."""
        replica = self._replica(message.model, owner)
        if replica is not None:
            replica.progress = message.progress
            self._host.is_dirty = True
            for peer, request in replica.waiters:
                text = f"loading {message.model} on {replica.place}"
                self._host.tell(peer, Progress(request=request, text=text, fraction=message.progress))

    def loaded(self, owner: str, message: Loaded) -> Model | None:
        """Record a completed load; return the model."""
        host, replica = self._host, self._replica(message.model, owner)
        if replica is None or replica.status not in ("loading", "recovering"):
            return None
        model = host.models[message.model]
        self._preload.discard(model.id)
        model.has_retried = False
        model.made_room.clear()
        host.workers[owner].cycles += 1
        replica.status, replica.progress, model.load_deaths = "loaded", None, 0
        is_first_load = replica.load_s is None
        replica.load_s = model.load_s = host.now - replica.since
        host.pace.note_load(model.id, replica.load_s)
        replica.loaded_at = replica.used_at = host.now
        replica.has_served = False
        if is_first_load:  # one that comes back after a death has the same plan, whose error is known by now
            key = correction_key(model, replica.device)
            host.corrections[key] = host.corrections.get(key, 0) + message.memory_mb - replica.plan.estimated_mb
        replica.memory_mb = max(message.memory_mb, model.profile.vram_mb or 0)
        replica.host_mb, replica.in_force = message.host_mb, message.in_force
        for device in replica.devices:
            host.ledger.reconcile(device, model.id, replica.share_mb)
        host.ledger.reconcile(HOST, host_key(model.id, replica.devices), replica.host_mb)
        host.is_dirty = True
        host.say("info", "model loaded", model=model.id, device=replica.place, seconds=round(replica.load_s, 2),
                 memory_mb=message.memory_mb, kv_tokens=message.kv_tokens)  # fmt: skip
        if not replica.leaving:  # else those who still wait have asked for its unload
            text = f"{model.id} is loaded on {replica.place} in {replica.load_s:.1f} s"
            self._answer(replica, Done(request="", text=text))
        return model

    def load_failed(self, owner: str, message: LoadFailed) -> Model | None:
        """Take the failed replica away and remember why; return the model."""
        replica = self._replica(message.model, owner)
        if replica is None:
            return None
        host, model = self._host, self._host.models[message.model]
        is_memory = message.code is Code.NO_CAPACITY
        host.say("error", "model failed to load", model=model.id, device=replica.place, why=message.message)
        if is_memory and not model.has_retried and not replica.leaving and self._retry(model, replica):
            return None
        # What is wrong with the file stays wrong; memory may be free another time.
        hold_s = OUT_OF_MEMORY_S if is_memory else FAULT_MEMORY_S
        self._inspection.note_fault(model, message.message, lasting=not is_memory, for_s=hold_s)
        if replica.device in model.replicas:
            gone = f"{model.id} is not on {replica.place}: its load failed" if replica.leaving else None
            self._remove(model, replica, gone, f"{model.id} cannot be loaded: {message.message}")
        self._bring_back(model)
        return model

    def _bring_back(self, model: Model) -> None:
        """Load again who went for a model that is not loaded after all, where nobody has to give way for that."""
        host, gone = self._host, list(model.made_room)
        model.made_room.clear()
        model.has_retried = False
        for name, device in gone:
            evicted = host.models.get(name)
            if evicted is None:
                continue
            replica = evicted.replicas.get(device)
            if replica is None:
                host.say("info", "model comes back", model=name, device=device, because=f"{model.id} is not loaded")
                self.load_again(evicted, device)
            elif replica.status == "unloading":
                replica.comes_back = True

    def _retry(self, model: Model, replica: Replica) -> bool:
        """Load a model once more that took more than was estimated; say whether that is under way."""
        host, waiters = self._host, list(replica.waiters)
        replica.waiters.clear()
        key = correction_key(model, replica.device)
        more_mb = max(LEAST_CORRECTION_MB, replica.plan.estimated_mb // 8)
        host.corrections[key] = host.corrections.get(key, 0) + more_mb
        self._remove(model, replica, None)
        model.has_retried = True
        error = self.wants.ask(model)
        if error is not None:
            for peer, request in waiters:
                host.tell(peer, Refused(request=request, code=error[0], message=error[1]))
            return False
        host.say("info", "model is loaded once more", model=model.id, more_mb=more_mb)
        self._wait(model, None, waiters)
        return True

    def begin_unload(self, model: Model, device: str) -> None:
        """Have the worker free a replica that has no running job."""
        replica = model.replicas[device]
        assert replica.running == 0, f"{model.id} on {replica.place} still has jobs"
        replica.status, replica.since = "unloading", self._host.now
        self._host.is_dirty = True
        if self._host.worker(device).state in (State.READY, State.DRAINING):
            self._host.tell_worker(device, UnloadModel(model=model.id))
        else:
            self._remove(model, replica, f"{model.id} is unloaded from {replica.place}")

    def unloaded(self, owner: str, message: Unloaded) -> Model | None:
        """Record a completed unload; return the model."""
        model_id, kept_mb = message.model, message.kept_mb
        replica = self._replica(model_id, owner)
        if replica is None or replica.status != "unloading":
            return None
        model = self._host.models[model_id]
        if kept_mb > max(KEPT_MB, (replica.memory_mb or 0) // 10):
            for device in replica.devices:
                self._host.ledger.withhold(device, share(kept_mb, len(replica.devices)))
            self._host.say("warning", "memory is not released; the worker is renewed when idle", device=replica.place,
                           model=model_id, kept_mb=kept_mb)  # fmt: skip
        self._remove(model, replica, f"{model_id} is unloaded from {replica.place}")
        self._host.evictions[replica.leaves_for] += 1
        self._host.say("info", "model unloaded", model=model_id, device=replica.place, why=LEAVES[replica.leaves_for])
        if replica.comes_back and model.newer is None:  # a newer one is loaded in any case
            self.load_again(model, replica.device)
        return model

    def note_loads(self, owner: str, loads: Iterable[LaneLoad]) -> None:
        """Take what a worker tells of its models' batches; too frequent to be pushed by itself."""
        for load in loads:
            replica = self._replica(load.model, owner)
            if replica is not None and replica.status == "loaded":
                replica.sequences, replica.kv_used = load.sequences, load.kv_used

    def _remove(self, model: Model, replica: Replica, done: str | None, failed: str = "") -> None:
        del model.replicas[replica.device]
        for device in replica.devices:
            self._host.ledger.release(device, model.id)
        self._host.ledger.release(HOST, host_key(model.id, replica.devices))
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

    def _replica(self, model_id: str, owner: str) -> Replica | None:
        model = self._host.models.get(model_id)
        return self._host.replica(model, owner) if model is not None else None
