"""Models whose profile has changed while they were loaded: marked outdated, and loaded anew when idle or when asked."""

from common.messages import Load
from neuron.memory.residency import Model
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.placement import Placement

IDLE_S = 10.0
"""A model that was not used for so long is replaced by itself."""


class Renewal:
    """Sends outdated replicas away, and loads the model with its new profile once the last one is gone."""

    def __init__(self, host: Host, inspection: Inspection, placement: Placement) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement
        self._asked: dict[str, list[tuple[str, Load]]] = {}
        """By model: loads that wait for the old replicas to be gone, and the peer that asks."""

    def replace(self, model: Model, message: Load, peer: str) -> None:
        """Finish the model's jobs and load it anew, with its present profile if there is no newer one."""
        self._asked.setdefault(model.id, []).append((peer, message))
        for replica in model.replicas.values():
            if not replica.leaving:
                self._dismiss(model, replica.device, "it is to be loaded anew")

    def sweep(self) -> None:
        """Send away what is outdated and idle."""
        host = self._host
        for model in host.models.values():
            if model.newer is None:
                continue
            is_wanted = host.jobs.waiting(model.id) > 0
            for replica in model.replicas.values():
                is_quiet = replica.status == "loaded" and not replica.leaving and not replica.running
                if is_quiet and not is_wanted and host.now - replica.used_at >= IDLE_S:
                    self._dismiss(model, replica.device, "its profile has changed")

    def _dismiss(self, model: Model, device: str, why: str) -> None:
        host, replica = self._host, model.replicas[device]
        replica.leaving, replica.makes_room_for, replica.leaves_for = True, None, "admin"
        model.unloaded_because = f"{why}; loaded again afterwards"
        host.leaving.add(model.id)
        host.say("info", "model is replaced", model=model.id, device=replica.place, because=why)
        host.is_dirty = True

    def renewed(self, model: Model) -> Model | None:
        """After a replica of it is gone: return the model with its newer profile, whose load is under way."""
        host = self._host
        if model.replicas or (model.newer is None and model.id not in self._asked):
            return None
        if host.models.get(model.id) is not model:
            return None
        new = model if model.newer is None else self._inspection.renew(model)
        asked = self._asked.pop(model.id, [])
        for peer, message in asked:
            self._placement.load(new, message, peer)
        if not asked:
            # What was loaded is to be loaded again; jobs that wait meanwhile may have others make room for it.
            self._placement.load(new, Load(request="", model=new.id, may_evict=host.jobs.waiting(new.id) > 0))
        return new
