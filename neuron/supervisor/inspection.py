"""Which models this host knows, and what their files tell: profiles, the search for the file, its header."""

from msgspec import structs

from common.catalogue import Profile
from common.engine_options import merged
from common.messages import Inspect, Inspected, InspectFailed
from neuron.discovery import Device
from neuron.memory.estimate import MemoryPlan, plan_memory
from neuron.memory.residency import Model
from neuron.supervisor.events import SourceResolved
from neuron.supervisor.host import Host
from neuron.supervisor.instructions import FetchSource, ResolveSource
from neuron.supervisor.states import State

FAULT_MEMORY_S = 2.0
"""A model that cannot be served is looked at again when it is asked for after this time: the file may have come."""


FETCH_FAULT_S = 30.0
"""A file that could not be fetched is not tried again before: the hub is not to be asked with every request."""
STRANGERS = 1000
"""Models that are known only because gateways have told of them; further ones are not taken."""


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

    def adopt(self, profile: Profile, *, own: bool, found: bool = False) -> Model:
        """Take a profile into the catalogue; one whose model is resident keeps what it was loaded with until renewed.

        A gateway's stands above the neuron's own in all but source and engine. `found`: it was made up for a file.
        """
        host = self._host
        known = host.models.get(profile.id)
        if known is None:
            pinned = host.settings.name in profile.pinned_on
            known = host.models[profile.id] = Model(
                profile, own, pinned=pinned, own=profile if own else None, is_found=found
            )
            self._begin_with_best(known, profile)
            host.is_dirty = True
            return known
        if known.own is not None:
            engine = merged(profile.engine, known.own.engine)
            # Its file may be none of the variants', or it names variants of its own.
            profile = structs.replace(profile, source=known.own.source, engine=engine, variants=known.own.variants)
        if (known.given or known.profile) == profile:
            host.is_dirty |= known.newer is not None
            known.newer, known.is_found = None, found
        elif known.replicas:
            host.is_dirty |= known.newer != profile
            known.newer, known.is_newer_found = profile, found
        else:
            known.newer, known.is_newer_found = profile, found
            known = self.renew(known)
        return known

    def takes(self, profile: Profile) -> bool:
        """Say whether there is room for a gateway's profile: what others send must not grow without end."""
        models = self._host.models
        return profile.id in models or sum(not m.is_own for m in models.values()) < STRANGERS

    def renew(self, model: Model) -> Model:
        """Put the newer profile of a model that is not loaded in force; return the model in its place."""
        host = self._host
        assert model.newer is not None, f"{model.id} has no newer profile"
        assert not model.replicas, f"{model.id} is still loaded"
        pinned = model.pinned or host.settings.name in model.newer.pinned_on
        new = host.models[model.id] = Model(
            model.newer,
            model.is_own,
            own=model.own,
            pinned=pinned,
            draining=model.draining,
            is_found=model.is_newer_found,
            made_room=model.made_room,
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
        model.path, model.facts, model.plan, model.shortfall = None, None, None, None
        self._resolve(model)
        return True

    def inspect(self, model: Model, *, wanted: bool = True) -> None:
        """Find the model's file and have prep read its header, unless that is known or under way.

        `wanted`: somebody waits for it, so a file that is not here is fetched if its profile says so.
        """
        if model.facts is not None:
            return
        model.is_wanted |= wanted
        if not model.inspecting:
            model.inspecting = True
            self._resolve(model)

    def _resolve(self, model: Model) -> None:
        host, template = self._host, model.profile.engine.chat_template_file
        beside = () if template is None else (template,)
        host.inspections += 1
        model.inspection = host.inspections
        host.out.append(ResolveSource(model.id, model.inspection, model.profile.source, beside))

    def _asked(self, model_id: str, number: int) -> Model | None:
        """Return the model whose present inspection an answer is to."""
        model = self._host.models.get(model_id)
        return model if model is not None and model.inspecting and model.inspection == number else None

    def source_resolved(self, event: SourceResolved) -> Model | None:
        """Go on with the inspection; return the model if it has ended, with a fault."""
        model, path = self._asked(event.model, event.number), event.path
        if model is None:
            return None
        if path is None:
            model.presence = "downloadable" if model.profile.source.startswith("hf:") else "missing"
            return model if self._miss(model, event.error or "its file was not found") else None
        model.path, model.identity = path, event.identity
        if event.identity and model.lasting_fault is not None and model.lasting_fault[0] == event.identity:
            model.inspecting = False
            self.note_fault(model, model.lasting_fault[1], lasting=True)
            return model
        if self._host.prep.state is State.READY:
            self._inspect_file(model, path)
        return None

    def _inspect_file(self, model: Model, path: str) -> None:
        engine = model.profile.engine
        self._host.tell_prep(Inspect(model=model.id, path=path, engine=engine, number=model.inspection))

    def _miss(self, model: Model, why: str) -> bool:
        """Go on without a file: with the next variant, or by fetching one; return True if that is the end."""
        if self._try_next(model, why) or (model.is_wanted and self._fetch(model)):
            return False
        if not model.is_wanted and self._fetchable(model):
            model.inspecting = False  # nothing is wrong: it is fetched as soon as somebody asks for it
            self.forget(model)
            return False
        self._settle(model, why)
        return True

    def _fetchable(self, model: Model) -> list[Profile]:
        """Return the variants that may be fetched, and have not been tried."""
        return [
            p for p in self._host.candidates(model)
            if p.download == "on_demand" and p.source.startswith("hf:") and p.source not in model.fetched
        ]  # fmt: skip

    def _fetch(self, model: Model) -> bool:
        """Have the best variant fetched that may be; False if there is none."""
        host, wanted = self._host, self._fetchable(model)
        if not wanted:
            return False
        model.profile, model.fetching = wanted[0], 0.0
        variants = host.candidates(model)
        model.others = variants[variants.index(wanted[0]) + 1 :]
        source = model.profile.source
        model.fetched.add(source)
        if source not in host.fetches:
            host.fetches.add(source)
            host.out.append(FetchSource(source))
            host.say("info", "fetching model", model=model.id, source=source)
        host.is_dirty = True
        return True

    def fetch_moved(self, source: str, progress: float) -> list[Model]:
        """Record how far a fetch is; return the models that wait for it."""
        models = self._waiting_for(source)
        for model in models:
            model.fetching = progress
            self._host.is_dirty = True
        return models

    def fetch_ended(self, source: str, error: str | None) -> list[Model]:
        """Go on once a file has come, or has not; return the models whose inspection has ended with a fault."""
        host = self._host
        host.fetches.discard(source)
        host.is_dirty = True
        ended = []
        for model in self._waiting_for(source):
            model.fetching = None
            if error is None:
                self._resolve(model)
            elif self._miss(model, f"its file could not be fetched: {error}"):
                model.fault_until = host.now + FETCH_FAULT_S
                ended.append(model)
        return ended

    def _waiting_for(self, source: str) -> list[Model]:
        return [m for m in self._host.models.values() if m.fetching is not None and m.profile.source == source]

    def prep_came_up(self) -> None:
        """Ask a new prep process again what the old one did not answer."""
        for model in self._host.models.values():
            if model.inspecting and model.path is not None:
                self._inspect_file(model, model.path)

    def inspected(self, message: Inspected | InspectFailed) -> Model | None:
        """Record what prep found out about a model; return the model."""
        model = self._asked(message.model, message.number)
        if model is None:
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
        model.inspecting, model.is_wanted, model.fault = False, False, fault
        model.fetched.clear()
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

    def forget(self, model: Model) -> None:
        """Forget what is known of a model's file, and an old fault: the next who asks has it looked at anew."""
        model.fault, model.facts, model.path = None, None, None
        if model.given is not None:
            self._begin_with_best(model, model.given)

    def look_again(self, model: Model) -> None:
        """Forget an old fault and look once more; where the file is still the same, the fault is too."""
        self.forget(model)
        self.inspect(model)
