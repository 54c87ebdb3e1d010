"""Models that were found on disk and that nobody described: they are listed, and served with what their header says."""

from collections.abc import Sequence

from msgspec import structs

from common.catalogue import Profile
from common.engine_options import merged
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
        self._last: Sequence[Found] = ()

    def update(self, found: Sequence[Found]) -> None:
        """Take the result of a scan: list what is new, mark what is broken, drop what is gone and unused."""
        self._last = found
        self.review()

    def review(self) -> None:
        """Judge the last scan again, after what is described has changed, or where that lies."""
        host, found = self._host, self._last
        described = {p for m in host.models.values() if not self._is_ours(m) for p in host.paths(m)}
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

    def apply_defaults(self) -> None:
        """Give every find the defaults that hold now; what is loaded is replaced as after any change of its profile."""
        for name, find in self._known.items():
            model = self._host.models.get(name)
            if model is not None and self._is_ours(model):
                adopted = self._adopt(find)
                if adopted is not model:
                    adopted.fault = find.problem

    def _take(self, find: Found) -> None:
        before, model = self._known.get(find.id), self._host.models.get(find.id)
        if model is not None and (before == find or not self._is_ours(model)):
            return
        if model is not None and before is None:  # loaded again at the start, as it is in the state
            self._known[find.id] = find
            self._adopt(find)
            return
        if model is not None and (model.replicas or model.inspecting or self._host.is_asked_for(find.id)):
            return  # it goes on with the file it was loaded from; looked at again once it is unloaded
        if model is not None:
            del self._host.models[find.id]
        self._adopt(find).fault = find.problem
        self._known[find.id] = find
        self._host.is_dirty = True

    def _adopt(self, find: Found) -> Model:
        model = self._inspection.adopt(self._profile(find), own=False, found=True)
        model.presence = "present"
        return model

    def _profile(self, find: Found) -> Profile:
        """Return a profile of nothing but the defaults: a gateway's, and above them this host's own engine options."""
        host, plain = self._host, Profile(id=find.id, source=find.source)
        given = plain if host.given_defaults is None else host.given_defaults.fill(plain)
        engine = merged(given.engine, host.own_defaults.engine)
        return structs.replace(host.own_defaults.fill(given), engine=engine)

    @staticmethod
    def _is_ours(model: Model) -> bool:
        return model.is_found if model.newer is None else model.is_newer_found
