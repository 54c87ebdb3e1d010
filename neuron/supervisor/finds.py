"""Models that were found on disk and that nobody described: they are listed, and served with what their header says."""

from collections.abc import Sequence

from common.catalogue import Profile
from neuron.memory.residency import Model
from neuron.models.library import Found
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection


class Finds:
    """Keeps the catalogue in step with the disk. A profile, whoever gave it, stands above a find."""

    def __init__(self, host: Host, inspection: Inspection) -> None:
        self._host = host
        self._inspection = inspection
        self._known: dict[str, Found] = {}
        """By id: what this part has put into the catalogue."""

    def update(self, found: Sequence[Found]) -> None:
        """Take the result of a scan: list what is new, mark what is broken, drop what is gone and unused."""
        host = self._host
        described = {m.path for m in host.models.values() if m.path and not self._is_ours(m)}
        present = {f.id: f for f in found if f.path not in described and f.id not in host.aliases}
        for name in [n for n in self._known if n not in present]:
            model = host.models.get(name)
            if model is None or not self._is_ours(model):
                del self._known[name]
            elif not (model.replicas or model.inspecting or host.is_asked_for(name)):
                del self._known[name], host.models[name]
                host.is_dirty = True
        for find in present.values():
            self._take(find)

    def _take(self, find: Found) -> None:
        before, model = self._known.get(find.id), self._host.models.get(find.id)
        if before == find or (model is not None and not self._is_ours(model)):
            return
        if model is not None and model.replicas:
            return  # it goes on with the file it was loaded from; looked at again once it is unloaded
        if before is not None and model is not None:
            del self._host.models[find.id]
        adopted = self._inspection.adopt(Profile(id=find.id, source=find.source), own=False)
        adopted.fault = find.problem
        self._known[find.id] = find
        self._host.is_dirty = True

    def _is_ours(self, model: Model) -> bool:
        find = self._known.get(model.id)
        return find is not None and not model.is_own and model.profile == Profile(id=find.id, source=find.source)
