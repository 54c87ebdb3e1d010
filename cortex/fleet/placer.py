"""Sends jobs to a neuron: to a replica of their model, or to where all gateways agree that it is loaded."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from common.catalogue import Catalogue, Profile
from common.errors import Code, RequestError
from common.log import fields
from common.messages import Claimed, NodeState, Offer
from cortex.fleet import placement, routing
from cortex.fleet.calls import Track
from cortex.fleet.claims import Claims
from cortex.fleet.link import Link
from cortex.fleet.listing import NO_NEURON_RETRY_S
from cortex.fleet.recovery import Patience
from cortex.fleet.view import Holders, LinkState, Node

log = logging.getLogger(__name__)

SPREAD_S = 5.0
"""Between two looks at whether a model has as many replicas as its profile wants."""
REHOUSE_S = 5.0
"""Between two attempts to find a place for a model whose device is in quarantine."""


class Placer:
    """Carries out what routing and placement choose, and remembers what is being agreed on."""

    def __init__(
        self,
        links: Mapping[str, Link],
        catalogue: Catalogue,
        clock: Callable[[], float],
        refused: Callable[[list[Track], RequestError], None],
        node_grace_s: float,
    ) -> None:
        """`refused(tracks, error)` is called where it turns out only later that no neuron takes them.

        `node_grace_s`: for so long nothing is loaded elsewhere because a neuron is missing.
        """
        self._node_grace_s = node_grace_s
        self._links = links
        self._offer = Offer()
        self._told: dict[str, int] = {}
        """By neuron: the greeting after which it was told of the present catalogue."""
        self.adopt(catalogue)
        self._clock = clock
        self._refused = refused
        self._holders = Holders()
        self._claims = Claims(links, clock)
        self._spread_at: dict[str, float] = {}
        """By model: when a further replica may be thought about again."""
        self._rehouse_at: dict[str, float] = {}
        """By model without a device: when a place is looked for again."""

    def adopt(self, catalogue: Catalogue) -> None:
        """Take the profiles of another catalogue."""
        self._profiles = {p.id: p for p in catalogue.models}
        before, self._offer = self._offer, Offer(profiles=catalogue.models, defaults=catalogue.defaults)
        if self._offer != before:
            self._told.clear()
        for link in self._links.values():
            self._tell(link)

    def profile(self, model: str) -> Profile | None:
        """Return the catalogue's profile of a model."""
        return self._profiles.get(model)

    def is_loaded(self, model: str) -> bool:
        """Return whether any neuron has a model loaded."""
        return any(n.resident[model].status == "loaded" for n in self._holders.of(model))

    def is_hot_beside(self, model: str, node: str) -> bool:
        """Return whether a neuron other than this one has a model loaded, and takes work."""
        others = [n for n in self._holders.of(model) if n.name != node and routing.can_take_work(n)]
        return any(n.resident[model].status == "loaded" for n in others)

    def has_longer(self, track: Track, node: str) -> bool:
        """Say whether another neuron serves the job's model with a longer context than one that has refused it."""
        states = {n.name: n.models.get(track.job.model) for n in self._nodes() if routing.can_take_work(n)}
        contexts = {name: state.context or 0 for name, state in states.items() if state is not None}
        return any(c > contexts.get(node, 0) for n, c in contexts.items() if n != node and n not in track.refusals)

    def tick(self) -> None:
        """Pass over registrars that do not answer; find places for models that have lost theirs."""
        self._claims.tick()
        self._rehouse()

    def learn(self, node: Node, state: NodeState) -> None:
        """Take note of what a neuron holds."""
        self._holders.learn(node, state)
        self._tell(self._links[node.name])

    def _tell(self, link: Link) -> None:
        """Tell a neuron once what the catalogue says; its states then tell whose files it has."""
        if self._told.get(link.node.name) != link.greetings and link.offer(self._offer):
            self._told[link.node.name] = link.greetings

    def claimed(self, node: str, message: Claimed) -> None:
        """Take a registrar's answer."""
        self._claims.answered(node, message)

    def place(self, tracks: list[Track]) -> RequestError | None:
        """Send jobs of one model to the best neuron that takes them; return why none does."""
        try:
            return self._place_warm(tracks)
        except RequestError as error:  # jobs that no connection can carry
            return error

    def _place_warm(self, tracks: list[Track]) -> RequestError | None:
        first = tracks[0]
        model = first.job.model
        for choice in self._choices(first):
            if choice.node not in first.refusals and self._send(tracks, choice.node):
                if choice.is_loaded:
                    self._spread(model)
                return None
        if any(r.code is Code.BUSY for r in first.refusals.values()):
            return _explain(model, list(first.refusals.values()))  # a second replica is nothing that load brings about
        return self._place_cold(tracks)

    def _choices(self, track: Track) -> list[routing.Choice]:
        """Return the replicas, best first; one where a fault has just happened comes after others that are loaded."""
        ranked = routing.rank(self._holders.of(track.job.model), track.job.model, track.job.prefix_chain)
        if any(c.is_loaded and c.node != track.failed_on for c in ranked):
            ranked.sort(key=lambda c: c.node == track.failed_on)
        return ranked

    def _place_cold(self, tracks: list[Track]) -> RequestError | None:
        """Have the model loaded where all gateways agree on, and send the jobs there; return why that is impossible."""
        first = tracks[0]
        lost = self._links.get(first.failed_on or "")
        if self._clock() < first.patient_until and not (lost and routing.can_take_work(lost.node)):
            return Patience(Code.NO_HEALTHY_NEURON, "its neuron is lost; it may be back in a moment", retriable=True)
        model, refused = first.job.model, frozenset(first.refusals)
        places = placement.rank(self._nodes(), model, self.profile(model))
        best = next((p for p in places if p.node not in refused), None)
        if best is None:
            return _explain(model, list(first.refusals.values()))
        missing = self._missing_holder(model)
        if missing is not None and first.job.answer == "generated":
            text = f"neuron {missing} has model '{model}' and is lost; it may be back in a moment"
            return Patience(Code.NO_HEALTHY_NEURON, text, retriable=True)
        if first.job.answer == "prompt":  # nothing is loaded for it: any neuron that has the file will do
            return None if self._send(tracks, best.node) else self._unreachable(tracks, best.node)
        if len(self._links) == 1:
            return self._load_at(tracks, best.node, best.need_mb)
        self._claims.ask(model, best.node, refused, lambda node: self._agreed(tracks, node, best.need_mb))
        return None

    def _missing_holder(self, model: str) -> str | None:
        """Return a neuron that had the model when it was last heard of, and may soon be back."""
        now = self._clock()
        for node in self._nodes():
            state, since = node.models.get(model), node.missing_since
            if state is None or since is None or now - since >= self._node_grace_s or node.is_draining:
                continue
            if state.status in ("loaded", "recovering", "loading"):
                return node.name
        return None

    async def agree(self, model: str) -> str:
        """Return the neuron where all gateways load a model that nobody has. Raises RequestError if there is none."""
        places = placement.rank(self._nodes(), model, self.profile(model))
        if not places:
            raise _explain(model, [])
        agreed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def settle(node: str) -> None:
            if not agreed.done():  # who asked may be gone
                agreed.set_result(node)

        self._claims.ask(model, places[0].node, frozenset(), settle)
        node = await agreed
        return node if node in self._links else places[0].node

    def _agreed(self, tracks: list[Track], node: str, need_mb: int | None) -> None:
        waiting = [t for t in tracks if t.node is None and not t.is_over]
        if not waiting:
            return
        try:
            refusal = self._load_at(waiting, node, need_mb)
        except RequestError as error:
            refusal = error
        if refusal is not None:
            self._refused(waiting, refusal)

    def _load_at(self, tracks: list[Track], node: str, need_mb: int | None) -> RequestError | None:
        """Have one neuron load the model and run the jobs; another one if it cannot be reached."""
        model, link = tracks[0].job.model, self._links.get(node)
        if link is not None and routing.can_take_work(link.node):
            link.ask_load(model, self.profile(model), need_mb)
            if self._send(tracks, node):
                return None
        return self._unreachable(tracks, node)

    def _unreachable(self, tracks: list[Track], node: str) -> RequestError | None:
        """Try the neurons that are left."""
        tracks[0].refusals[node] = RequestError(
            Code.NO_HEALTHY_NEURON, f"neuron {node} cannot be reached", retriable=True, retry_after_s=NO_NEURON_RETRY_S
        )
        return self.place(tracks)

    def _send(self, tracks: list[Track], node: str) -> bool:
        now, link, model = self._clock(), self._links[node], tracks[0].job.model
        profile = self.profile(model) if model not in link.node.models else None
        if not link.submit([t.renew(now) for t in tracks], profile):
            return False
        for track in tracks:
            track.node = node
        return True

    def _spread(self, model: str) -> None:
        """Load a further replica of a model in use, if its profile wants more and it fits without an eviction."""
        profile, now = self.profile(model), self._clock()
        if profile is None or profile.replicas == 1 or now < self._spread_at.get(model, now):
            return
        self._spread_at[model] = now + SPREAD_S
        holding = {c.node for c in routing.rank(self._holders.of(model), model)}
        if len(holding) >= profile.replicas:
            return
        places = placement.rank((n for n in self._nodes() if n.name not in holding), model, profile)
        best = next((p for p in places if p.fit is placement.Fit.FREE), None)
        if best is not None:
            name = f"{model}#{len(holding) + 1}"
            self._claims.ask(name, best.node, frozenset(holding), partial(self._add, model, need_mb=best.need_mb))

    def _add(self, model: str, node: str, need_mb: int | None) -> None:
        link = self._links.get(node)
        if link is not None and routing.can_take_work(link.node):
            link.ask_load(model, self.profile(model), need_mb, may_evict=False)

    def _rehouse(self) -> None:
        """Load models whose device is in quarantine, and which nobody has, where nothing has to give way for them.

        Without a request, as their own neuron would: pinned ones first, then by class.
        """
        lost = {m: n.models[m] for n in self._nodes() if n.link is LinkState.UP for m in n.displaced}
        if not lost:
            self._rehouse_at.clear()
            return
        now = self._clock()
        for model in sorted(lost, key=lambda m: (not lost[m].pinned, -lost[m].residency_priority, m)):
            if now < self._rehouse_at.get(model, now) or self._is_somewhere(model):
                continue
            self._rehouse_at[model] = now + REHOUSE_S
            has_none = {n.name for n in self._nodes() if model in n.displaced}
            places = placement.rank(self._nodes(), model, self.profile(model))
            best = next((p for p in places if p.fit is placement.Fit.FREE and p.node not in has_none), None)
            if best is not None:
                log.info("model has lost its device; it is loaded elsewhere", extra=fields(model=model, node=best.node))
                # Under the model's own name: a request that comes meanwhile has it loaded at the same neuron.
                self._claims.ask(model, best.node, frozenset(), partial(self._add, model, need_mb=best.need_mb))
                return  # the next one at the next tick: it is to find the room that is left then

    def _is_somewhere(self, model: str) -> bool:
        """Say whether a neuron has the model or will have it, or had it and may be back in a moment."""
        held = any(routing.is_coming(n.resident[model]) for n in self._holders.of(model) if n.link is LinkState.UP)
        return held or self._missing_holder(model) is not None

    def _nodes(self) -> list[Node]:
        return [link.node for link in self._links.values()]


def _explain(model: str, refusals: list[RequestError]) -> RequestError:
    """Return the error for a job that no neuron takes: busy ones come first, their queues will move."""
    busy = [r for r in refusals if r.code is Code.BUSY]
    if busy:
        waits = [r.retry_after_s for r in busy if r.retry_after_s is not None]
        return RequestError(Code.NO_CAPACITY, busy[0].message, retriable=True, retry_after_s=min(waits, default=None))
    if refusals:
        return refusals[0]
    return RequestError(
        Code.NO_HEALTHY_NEURON,
        f"no neuron that could serve '{model}' is reachable",
        retriable=True,
        retry_after_s=NO_NEURON_RETRY_S,
    )
