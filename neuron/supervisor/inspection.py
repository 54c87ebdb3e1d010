"""Which models this host knows, and what their files tell: profiles, the search for the file, its header."""

from msgspec import structs

from common.catalogue import Profile
from common.engine_options import merged
from common.messages import Inspect, Inspected, InspectFailed
from neuron.discovery import Device
from neuron.memory.estimate import MemoryPlan, plan_memory
from neuron.memory.residency import Model
from neuron.supervisor.host import Host
from neuron.supervisor.instructions import ResolveSource
from neuron.supervisor.states import State

FAULT_MEMORY_S = 2.0
"""A model that cannot be served is looked at again when it is asked for after this time: the file may have come."""


def size_model(host: Host, model: Model, device: str, free_mb: int | None) -> MemoryPlan | str:
    """Return the sizes to load a model with on a device of which `free_mb` are free, or why that is not possible."""
    assert model.facts is not None, "sizes need the inspected file"
    correction_mb = host.corrections.get(correction_key(model, device), 0)
    return plan_memory(model.profile, model.facts, free_mb, correction_mb, host.devices[device].kind)


def correction_key(model: Model, device: str) -> str:
    """Return where the error of the estimate is remembered."""
    return f"{model.fingerprint}@{device}"


def is_large_enough(model: Model, device: Device) -> bool:
    """Say whether a device has the memory that the profile asks of every device."""
    least = model.profile.min_device_vram_mb
    return least is None or device.memory_mb is None or device.memory_mb >= least


def _fits_well(model: Model) -> bool:
    """Say whether a device can hold it, and all of it unless its profile says how much."""
    is_whole = model.plan is not None and model.plan.gpu_layers is None
    return model.plan is not None and (is_whole or isinstance(model.profile.engine.n_gpu_layers, int))


class Inspection:
    """Keeps the profiles. An inspection that ends is reported by the caller to those who waited."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def adopt(self, profile: Profile, *, own: bool) -> Model:
        """Take a profile into the catalogue; one whose model is resident keeps what it was loaded with until renewed.

        A gateway's stands above the neuron's own in all but source and engine.
        """
        host = self._host
        known = host.models.get(profile.id)
        if known is None:
            pinned = host.settings.name in profile.pinned_on
            known = host.models[profile.id] = Model(profile, own, pinned=pinned, own=profile if own else None)
            self._begin_with_best(known, profile)
            host.is_dirty = True
            return known
        if known.own is not None:
            engine = merged(profile.engine, known.own.engine)
            # Its file may be none of the variants', or it names variants of its own.
            profile = structs.replace(profile, source=known.own.source, engine=engine, variants=known.own.variants)
        if (known.given or known.profile) == profile:
            host.is_dirty |= known.newer is not None
            known.newer = None
        elif known.replicas:
            host.is_dirty |= known.newer != profile
            known.newer = profile
        else:
            known.newer = profile
            known = self.renew(known)
        return known

    def renew(self, model: Model) -> Model:
        """Put the newer profile of a model that is not loaded in force; return the model in its place."""
        host = self._host
        assert model.newer is not None, f"{model.id} has no newer profile"
        assert not model.replicas, f"{model.id} is still loaded"
        pinned = model.pinned or host.settings.name in model.newer.pinned_on
        new = host.models[model.id] = Model(
            model.newer, model.is_own, own=model.own, pinned=pinned, draining=model.draining
        )
        self._begin_with_best(new, model.newer)
        host.is_dirty = True
        return new

    def _begin_with_best(self, model: Model, given: Profile) -> None:
        """Try the variants of a profile from the first on."""
        if not given.variants:
            return
        model.given = given
        first, *model.others = given.for_host(self._host.settings.name) or [structs.replace(given, variants=[])]
        model.profile = first

    def _try_next(self, model: Model, why: str) -> bool:
        """Go over to the next variant; False if there is none."""
        if not model.others:
            return False
        self._host.say("info", "next variant", model=model.id, source=model.profile.source, because=why)
        model.profile = model.others.pop(0)
        model.path, model.facts, model.plan, model.shortfall, model.inspecting = None, None, None, None, False
        self.inspect(model)
        return True

    def inspect(self, model: Model) -> None:
        """Find the model's file and have prep read its header, unless that is known or under way."""
        host = self._host
        if model.inspecting or model.facts is not None:
            return
        model.inspecting = True
        template = model.profile.engine.chat_template_file
        host.out.append(ResolveSource(model.id, model.profile.source, () if template is None else (template,)))

    def source_resolved(self, model: Model, path: str | None, error: str | None, identity: str) -> bool:
        """Go on with the inspection; return True if it has ended, with a fault."""
        if path is None:
            if self._try_next(model, error or "its file was not found"):
                return False
            self._settle(model, error or "its file was not found")
            return True
        model.path, model.identity = path, identity
        if identity and model.lasting_fault is not None and model.lasting_fault[0] == identity:
            model.inspecting = False
            self.note_fault(model, model.lasting_fault[1], lasting=True)
            return True
        if self._host.prep.state is State.READY:
            self._host.tell_prep(Inspect(model=model.id, path=path, engine=model.profile.engine))
        return False

    def prep_came_up(self) -> None:
        """Ask a new prep process again what the old one did not answer."""
        for model in self._host.models.values():
            if model.inspecting and model.path is not None:
                self._host.tell_prep(Inspect(model=model.id, path=model.path, engine=model.profile.engine))

    def inspected(self, message: Inspected | InspectFailed) -> Model | None:
        """Record what prep found out about a model; return the model."""
        model = self._host.models.get(message.model)
        if model is None or not model.inspecting:
            return None
        if isinstance(message, InspectFailed):
            if self._try_next(model, message.message):
                return None
            self._settle(model, message.message)
        else:
            model.facts = message.facts
            self._foresee(model)
            if not _fits_well(model) and self._try_next(model, model.shortfall or "not all its layers fit a GPU"):
                return None
            self._settle(model, None)
        return model

    def _foresee(self, model: Model) -> None:
        """Tell from the header whether the model can ever be held here, and with which sizes."""
        assert model.facts is not None
        model.plan, model.shortfall = None, "no device of this host is served"
        model.forecast.clear()
        if model.profile.min_devices > 1:
            self._foresee_spanning(model)
            return
        for device in self._host.workers:
            found: MemoryPlan | str = f"{device} has less than min_device_vram_mb ({model.profile.min_device_vram_mb})"
            if is_large_enough(model, self._host.devices[device]):
                found = size_model(self._host, model, device, self._host.ledger.capacity_mb(device))
            if isinstance(found, MemoryPlan):
                model.forecast[device] = found
            if not isinstance(found, MemoryPlan):
                model.shortfall = found if model.plan is None else None
            elif model.plan is None or found.kv_tokens > model.plan.kv_tokens:
                model.plan, model.shortfall = found, None

    def _foresee_spanning(self, model: Model) -> None:
        """As `_foresee`, for equal shares of the largest devices."""
        host, count = self._host, model.profile.min_devices
        large = [d for d in host.workers if is_large_enough(model, host.devices[d])]
        if len(large) < count:
            least = model.profile.min_device_vram_mb
            kind = "served devices" if least is None else f"served devices with {least} MiB or more"
            model.shortfall = f"it needs {count} {kind} (min_devices), and this host has {len(large)}"
            return
        sizes = sorted((mb for d in large if (mb := host.ledger.capacity_mb(d)) is not None), reverse=True)
        total_mb = sizes[count - 1] * count if len(sizes) == len(large) else None
        found = size_model(host, model, large[0], total_mb)
        model.plan, model.shortfall = (found, None) if isinstance(found, MemoryPlan) else (None, found)

    def _settle(self, model: Model, fault: str | None) -> None:
        host = self._host
        model.inspecting, model.fault = False, fault
        host.is_dirty = True
        if fault is not None:
            self.note_fault(model, fault, lasting=model.path is not None)
            host.say("error", "model cannot be served", model=model.id, why=fault)

    def note_fault(self, model: Model, fault: str, *, lasting: bool, for_s: float = FAULT_MEMORY_S) -> None:
        """Remember why a model cannot be served; `lasting`: as long as its file is the same."""
        model.fault, model.fault_until = fault, self._host.now + for_s
        model.lasting_fault = (model.identity, fault) if lasting and model.identity else None
        self._host.is_dirty = True

    def is_fault_fresh(self, model: Model) -> bool:
        """Say whether the model's fault is recent enough to be believed without another look."""
        return model.fault is not None and self._host.now < model.fault_until

    def look_again(self, model: Model) -> None:
        """Forget an old fault and look once more; where the file is still the same, the fault is too."""
        model.fault, model.facts, model.path = None, None, None
        if model.given is not None:
            self._begin_with_best(model, model.given)
        self.inspect(model)
