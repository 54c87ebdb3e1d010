"""What gateways' models files say: whose files are here is known before anybody asks for one of the models."""

from collections.abc import Mapping

from common.messages import Offer
from neuron.memory.residency import Model, Presence
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.instructions import WatchSources
from neuron.supervisor.placement import Placement
from neuron.supervisor.states import State


class Offers:
    """Keeps the profiles that gateways describe, and has the files of all that is described looked for."""

    def __init__(self, host: Host, inspection: Inspection, placement: Placement) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement
        self._offered: dict[str, frozenset[str]] = {}
        """By gateway: ids of models. One that is gone counts until another one offers: its successor says the same."""
        self._watched: tuple[str, ...] = ()

    def take(self, peer: str, offer: Offer) -> None:
        """Adopt what a gateway describes, and let go of what none of those that are here describes any more."""
        host = self._host
        live = {p: o for p, o in self._offered.items() if p in host.peers.gateways()}
        self._offered = live | {peer: frozenset(p.id for p in offer.profiles)}
        host.given_defaults = offer.defaults
        for profile in offer.profiles:
            if not self._inspection.takes(profile):
                continue
            before = host.models.get(profile.id)
            model = self._inspection.adopt(profile, own=False)
            if before is None and self._placement.is_preload(model.id):
                self._placement.load_again(model)
            elif before is not None and before.inspecting and not model.inspecting:
                self._inspection.inspect(model, wanted=before.is_wanted)  # others wait for what it finds
            host.given.add(profile.id)
        self.tidy()

    def tidy(self) -> None:
        """Let go of what nobody describes any more and nobody uses, and have the files of the rest looked for."""
        host = self._host
        for name in host.given.difference(*self._offered.values()):
            model = host.models.get(name)
            if model is not None and model.own is not None:
                self._inspection.adopt(model.own, own=True)
            elif model is not None and not model.is_found:
                if model.replicas or model.inspecting or host.is_asked_for(name):
                    continue
                del host.models[name]
            host.given.discard(name)
            host.is_dirty = True
        watched = tuple(sorted({s for m in host.models.values() if not m.is_found for s in host.sources(m)}))
        if watched != self._watched:
            self._watched = watched
            host.out.append(WatchSources(watched))

    def sweep(self) -> None:
        """Have the next file read that is here, while prep has nothing to do: what cannot work is known beforehand."""
        host = self._host
        is_busy = any(e.state == "preparing" for e in host.jobs.entries()) or any(
            m.inspecting and m.fetching is None for m in host.models.values()
        )
        if is_busy or host.prep.state is not State.READY or host.stopping:
            return
        for name in host.given:
            model = host.models.get(name)
            if model is not None and model.presence == "present" and model.facts is None and model.fault is None:
                self._inspection.inspect(model, wanted=False)
                return

    def located(self, places: Mapping[str, str | None]) -> None:
        """Take what a look at the disks has shown: by source the path of its file, None if it is not here."""
        host = self._host
        host.located = {s: path for s, path in places.items() if path is not None}
        for model in host.models.values():
            sources = [s for s in host.sources(model) if s in places]
            if model.is_found or not sources or model.inspecting:
                continue
            self._note(model, _presence(sources, is_present=any(s in host.located for s in sources)))

    def _note(self, model: Model, presence: Presence) -> None:
        host = self._host
        has_come = presence == "present" and model.path is None and model.fault is not None
        is_used = bool(model.replicas) or host.is_asked_for(model.id)
        has_gone = presence != "present" and model.path is not None and not is_used
        if has_come or has_gone:
            self._inspection.forget(model)
            host.is_dirty = True
        if model.presence != presence:
            model.presence = presence
            host.is_dirty = True


def _presence(sources: list[str], *, is_present: bool) -> Presence:
    if is_present:
        return "present"
    return "downloadable" if any(s.startswith("hf:") for s in sources) else "missing"
