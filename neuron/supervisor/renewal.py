"""Models whose profile has changed while they were loaded: marked outdated, and loaded anew when idle or when asked."""

from common.errors import Code
from common.messages import Load, Refused
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
        """By model that was sent away: loads that wait for the old replicas to be gone, and the peer that asks."""

    def replace(self, model: Model, message: Load, peer: str) -> None:
        """Finish the model's jobs and load it anew, with its present profile if there is no newer one."""
        self._asked.setdefault(model.id, []).append((peer, message))
        for replica in model.replicas.values():
            if not replica.leaving:
                self._dismiss(model, replica.device, "it is to be loaded anew")

    def settle(self) -> None:
        """After an event: go on with the loads whose old replicas are gone without having been unloaded in order."""
        host = self._host
        for model_id in list(self._asked):
            model = host.models.get(model_id)
            if model is None:
                for peer, message in self._asked.pop(model_id):
                    text = f"no model '{model_id}' here any more"
                    host.tell(peer, Refused(request=message.request, code=Code.MODEL_NOT_FOUND, message=text))
            elif not model.replicas:
                self.renewed(model)
            elif not any(r.leaving or r.status == "unloading" for r in model.replicas.values()):
                # A later load has had it stay, or has brought it back with the profile that is to be replaced.
                for peer, message in self._asked.pop(model_id):
                    self.replace(model, message, peer)

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
        asked = self._asked.setdefault(model.id, [])
        asked += [(peer, Load(request=request, model=model.id)) for peer, request in replica.waiters]
        replica.waiters.clear()  # they wait for its load, which is not to be the last one
        replica.leaving, replica.makes_room_for, replica.leaves_for = True, None, "admin"
        model.unloaded_because = f"{why}; loaded again afterwards"
        host.leaving.add(model.id)
        host.say("info", "model is replaced", model=model.id, device=replica.place, because=why)
        host.is_dirty = True

    def renewed(self, model: Model) -> Model:
        """After a replica of it is gone: return the model with the profile that is in force from now on.

        If it was sent away for that, its load is under way.
        """
        host = self._host
        if model.replicas or host.models.get(model.id) is not model:
            return host.models.get(model.id, model)
        new = model if model.newer is None else self._inspection.renew(model)
        new.unloaded_because = model.unloaded_because
        asked = self._asked.pop(model.id, None)
        for peer, message in asked or []:
            self._placement.load(new, message, peer)
        if asked == []:
            # What was loaded is to be loaded again; jobs that wait meanwhile may have others make room for it.
            self._placement.load(new, Load(request="", model=new.id, may_evict=host.jobs.waiting(new.id) > 0))
        return new
