"""The profiles of this host's own models file, and how a changed file is taken over."""

from common.catalogue import Catalogue, Profile
from neuron.memory.residency import Model
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection


class Profiles:
    """Replaces what is not in use at once; what is, when it no longer is."""

    def __init__(self, host: Host, inspection: Inspection) -> None:
        self._host = host
        self._inspection = inspection
        self._pending: dict[str, Profile | None] = {}
        """By id: what is to replace a model in use; None: nothing does."""

    def replace(self, catalogue: Catalogue) -> None:
        """Take over a file that has been read anew. A model in use keeps what it was loaded with."""
        host = self._host
        stated = {p.id: p for p in catalogue.models}
        host.aliases, host.own_defaults = catalogue.targets(), catalogue.defaults
        host.is_dirty = True
        gone = {m.id: None for m in host.models.values() if m.is_own and m.id not in stated}
        changed = {p.id: p for p in stated.values() if not self._is_in_force(p)}
        self._pending = {**gone, **changed}
        self.settle()
        if self._pending:
            host.say("info", "changes of models in use apply once they are unloaded", models=", ".join(self._pending))

    def settle(self) -> None:
        """Apply what has waited for a model to be no longer in use."""
        for name in list(self._pending):
            model = self._host.models.get(name)
            if model is None or not (model.replicas or model.inspecting or self._host.is_asked_for(name)):
                self._apply(name, model, self._pending.pop(name))

    def _is_in_force(self, profile: Profile) -> bool:
        known = self._host.models.get(profile.id)
        return known is not None and known.own == profile

    def _apply(self, name: str, before: Model | None, profile: Profile | None) -> None:
        host = self._host
        host.is_dirty = True
        if before is not None:
            del host.models[name]
        if profile is not None:
            model = self._inspection.adopt(profile, own=True)
            model.pinned |= before is not None and before.pinned
            self._inspection.inspect(model, wanted=False)
