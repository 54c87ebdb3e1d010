"""The job client: places jobs, believes only what comes in order, tries again where nothing has been shown yet.

A failure before Started is invisible to the HTTP client, so the job may be sent again, to another neuron or the same;
after Started it is the request's failure. Every attempt has a new number, so what an old one still says is recognised.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from common.catalogue import Catalogue, Profile
from common.errors import Code, RequestError
from common.log import fields
from common.messages import (
    Claimed,
    EndedItem,
    FailedItem,
    Job,
    JobKey,
    NodeState,
    RenderedItem,
    StartedItem,
    TokenItem,
)
from cortex.fleet import placement, routing
from cortex.fleet.calls import JobCall, Track
from cortex.fleet.claims import Claims
from cortex.fleet.delivery import Verdict
from cortex.fleet.link import JobEvent, Link
from cortex.fleet.view import Holders, Node

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Of one job that faults take before it has begun."""
BACKOFF_S = 0.1
"""Before the second attempt; doubles."""
OVERDUE_S = 5.0
"""So long after its budget a job is given up here, should the neuron not have said so."""
NO_NEURON_RETRY_S = 2.0
SPREAD_S = 5.0
"""Between two looks at whether a model has as many replicas as its profile wants."""

ELSEWHERE = frozenset({
    Code.BUSY, Code.NO_CAPACITY, Code.MODEL_NOT_FOUND, Code.MODEL_LOADING_FAILED, Code.MODEL_UNLOADED,
    Code.SHUTTING_DOWN, Code.DEVICE_UNAVAILABLE,
})  # fmt: skip
"""Codes that say something about one neuron: the next candidate may well serve the job."""


class JobClient:
    """All running jobs of this gateway process."""

    def __init__(self, links: Mapping[str, Link], catalogue: Catalogue, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds, the event loop's."""
        self._links = links
        self.adopt(catalogue)
        self._clock = clock
        self._tracks: dict[str, Track] = {}
        self._holders = Holders()
        self._claims = Claims(links, clock)
        self._spread_at: dict[str, float] = {}
        """By model: when a further replica may be thought about again."""

    def adopt(self, catalogue: Catalogue) -> None:
        """Take the profiles of another catalogue."""
        self._profiles = {p.id: p for p in catalogue.models}

    def profile(self, model: str) -> Profile | None:
        """Return the catalogue's profile of a model."""
        return self._profiles.get(model)

    def __len__(self) -> int:
        return len(self._tracks)

    def now(self) -> float:
        """Return the clock's time."""
        return self._clock()

    def submit(self, jobs: list[Job]) -> JobCall:
        """Send the jobs of one request, all of one model. Raises RequestError if it is known that no neuron takes them.

        Where a model that nobody has is to be loaded is agreed on first, so these jobs are sent a moment later.
        """
        call = JobCall(self, jobs)
        self._tracks.update({t.job.id: t for t in call.tracks})
        error = self._place(call.tracks)
        if error is not None:
            self.drop(call.tracks)
            raise error
        return call

    def drop(self, tracks: list[Track]) -> None:
        """Forget jobs, and abort them where they run."""
        keys: dict[str, list[JobKey]] = {}
        for track in tracks:
            if self._tracks.pop(track.job.id, None) is None:
                continue
            if track.retry is not None:
                track.retry.cancel()
            if track.node is not None:
                keys.setdefault(track.node, []).append(track.key)
        for node, aborted in keys.items():
            self._links[node].abort(aborted)

    def fail_all(self, error: RequestError) -> None:
        """End every call with this error."""
        for call in {t.call for t in self._tracks.values()}:
            call.fail(error)

    def sweep(self) -> None:
        """Give up jobs that have not begun long after their budget, and registrars that do not answer."""
        self._claims.tick()
        now = self.now()
        for track in list(self._tracks.values()):
            remaining_ms = track.remaining_ms(now)
            if remaining_ms is None or track.delivery.is_started or track.job.id not in self._tracks:
                continue
            if remaining_ms / 1000 < -OVERDUE_S:
                track.call.fail(_overdue(track))

    # What links tell.

    def live(self, node: str) -> list[JobKey]:
        """Return the jobs that are to run on a neuron."""
        return [t.key for t in self._tracks.values() if t.node == node]

    def learn(self, node: Node, state: NodeState) -> None:
        """Take note of what a neuron holds."""
        self._holders.learn(node, state)

    def claimed(self, node: str, message: Claimed) -> None:
        """Take a registrar's answer."""
        self._claims.answered(node, message)

    def explain_wait(self, track: Track) -> str | None:
        """Return what a job that has not begun waits for, as its neuron's last state tells."""
        state = None if track.node is None else self._links[track.node].node.models.get(track.job.model)
        if state is None:
            return None
        if state.status in ("loading", "recovering"):
            progress = max((r.progress for r in state.replicas if r.progress is not None), default=None)
            return "loading" if progress is None else f"loading {progress:.0%}"
        return f"queue {state.queued}" if state.queued else None

    def handle(self, node: str, event: JobEvent) -> None:
        """Take events of jobs from a neuron."""
        stale: list[JobKey] = []
        for item in event.items:
            track = self._tracks.get(item.job)
            if track is None:
                continue  # aborted; the neuron knows, or learns it from the next Beat
            if track.node == node and item.attempt == track.delivery.attempt:
                self._take(track, item)
            elif not isinstance(item, EndedItem | FailedItem | RenderedItem):
                stale.append(JobKey(item.job, item.attempt))
        if stale:
            self._links[node].abort(stale)

    def _take(self, track: Track, item: StartedItem | TokenItem | EndedItem | FailedItem | RenderedItem) -> None:
        delivery, call = track.delivery, track.call
        match item:
            case TokenItem():
                verdict = delivery.judge_tokens(item)
                if verdict is Verdict.ACCEPT:
                    call.add(track, item)
            case StartedItem():
                verdict = delivery.judge_start(item.attempt)
                if verdict is Verdict.ACCEPT:
                    call.begin(track, item)
            case EndedItem():
                verdict = delivery.judge_end(item.attempt, item.total)
                if verdict is Verdict.ACCEPT:
                    del self._tracks[item.job]
                    call.end(track, item)
            case RenderedItem():
                del self._tracks[item.job]
                call.end(track, item)
                return
            case FailedItem():
                retry_s = None if item.retry_after_ms is None else item.retry_after_ms / 1000
                error = RequestError(
                    item.code, item.message, param=item.param, retriable=item.retriable, retry_after_s=retry_s
                )
                self._recover(track, error)
                return
        if verdict is Verdict.GAP:
            assert track.node is not None
            self._links[track.node].abort([track.key])
            self._recover(
                track, RequestError(Code.TOKENS_LOST, "part of the answer was lost on the way", retriable=True)
            )

    def lose(self, node: str, message: str) -> None:
        """Give up all jobs on a neuron that does not have them any more."""
        for track in [t for t in self._tracks.values() if t.node == node]:
            if track.job.id in self._tracks:  # else a sibling's failure has ended its call
                self._recover(track, RequestError(Code.NEURON_LOST, message, retriable=True))

    # Attempts.

    def _recover(self, track: Track, error: RequestError) -> None:
        """Send a job that its neuron does not run any more once again, if nothing of it has been shown; else fail."""
        node, track.node = track.node, None
        # A job that has begun could be resumed here, with the tokens it has delivered.
        if track.delivery.is_started:
            track.call.fail(error)
        elif error.code in ELSEWHERE and node is not None:
            track.refusals[node] = error
            track.delivery.begin_attempt()
            refusal = self._place([track])
            if refusal is not None:
                track.call.fail(refusal)
        elif error.retriable:
            self._back_off(track, error)
        else:
            track.call.fail(error)

    def _back_off(self, track: Track, error: RequestError) -> None:
        """Wait a little before the next attempt, or end the call with `error` after the last."""
        track.faults += 1
        if track.faults >= ATTEMPTS:
            track.call.fail(error)
            return
        log.warning(
            "job is sent again",
            extra=fields(request_id=track.job.request_id, job=track.job.id, model=track.job.model, why=error.message),
        )
        track.delivery.begin_attempt()
        track.refusals.clear()
        delay_s = BACKOFF_S * 2 ** (track.faults - 1)
        track.retry = asyncio.get_running_loop().call_later(delay_s, self._try_again, track)

    def _try_again(self, track: Track) -> None:
        track.retry = None
        remaining_ms = track.remaining_ms(self.now())
        if remaining_ms is not None and remaining_ms <= 0:
            track.call.fail(_overdue(track))
            return
        error = self._place([track])
        if error is not None:
            self._back_off(track, error)

    def _place(self, tracks: list[Track]) -> RequestError | None:
        """Send jobs of one model to the best neuron that takes them; return why none does."""
        try:
            return self._place_warm(tracks)
        except RequestError as error:  # jobs that no connection can carry
            return error

    def _place_warm(self, tracks: list[Track]) -> RequestError | None:
        first = tracks[0]
        model = first.job.model
        for choice in routing.rank(self._holders.of(model), model, first.job.prefix_chain):
            if choice.node not in first.refusals and self._send(tracks, choice.node):
                if choice.is_loaded:
                    self._spread(model)
                return None
        if any(r.code is Code.BUSY for r in first.refusals.values()):
            return _explain(model, list(first.refusals.values()))  # a second replica is nothing that load brings about
        return self._place_cold(tracks)

    def _place_cold(self, tracks: list[Track]) -> RequestError | None:
        """Have the model loaded where all gateways agree on, and send the jobs there; return why that is impossible."""
        first = tracks[0]
        model, refused = first.job.model, frozenset(first.refusals)
        places = placement.rank(self._nodes(), model, self.profile(model))
        best = next((p for p in places if p.node not in refused), None)
        if best is None:
            return _explain(model, list(first.refusals.values()))
        if first.job.answer == "prompt":  # nothing is loaded for it: any neuron that has the file will do
            return None if self._send(tracks, best.node) else self._unreachable(tracks, best.node)
        if len(self._links) == 1:
            return self._load_at(tracks, best.node, best.need_mb)
        self._claims.ask(model, best.node, refused, lambda node: self._agreed(tracks, node, best.need_mb))
        return None

    def _agreed(self, tracks: list[Track], node: str, need_mb: int | None) -> None:
        waiting = [t for t in tracks if t.job.id in self._tracks]
        if not waiting:
            return
        try:
            refusal = self._load_at(waiting, node, need_mb)
        except RequestError as error:
            refusal = error
        if refusal is not None:
            waiting[0].call.fail(refusal)

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
        return self._place(tracks)

    def _send(self, tracks: list[Track], node: str) -> bool:
        now, link, model = self.now(), self._links[node], tracks[0].job.model
        profile = self.profile(model) if model not in link.node.models else None
        if not link.submit([t.renew(now) for t in tracks], profile):
            return False
        for track in tracks:
            track.node = node
        return True

    def _spread(self, model: str) -> None:
        """Load a further replica of a model in use, if its profile wants more and it fits without an eviction."""
        profile, now = self.profile(model), self.now()
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
            self._claims.ask(name, best.node, frozenset(holding), lambda node: self._add(profile, node, best.need_mb))

    def _add(self, profile: Profile, node: str, need_mb: int | None) -> None:
        link = self._links.get(node)
        if link is not None and routing.can_take_work(link.node):
            link.ask_load(profile.id, profile, need_mb)

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


def _overdue(track: Track) -> RequestError:
    budget_s = (track.job.budget_ms or 0) / 1000
    return RequestError(Code.DEADLINE_EXCEEDED, f"the request had not begun after {budget_s:g} s")
