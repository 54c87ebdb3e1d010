"""The job client: places jobs, believes only what comes in order, tries again where nothing has been shown yet.

A failure before Started is invisible to the HTTP client, so the job may be sent again, to another neuron or the same;
after Started it is the request's failure. Every attempt has a new number, so what an old one still says is recognised.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from msgspec import structs

from common.catalogue import Catalogue
from common.errors import Code, RequestError
from common.log import fields
from common.messages import (
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    Job,
    JobKey,
    Started,
    StartedItem,
    TokenItem,
    Tokens,
)
from cortex.fleet import routing
from cortex.fleet.contract import Events
from cortex.fleet.delivery import Delivery, Verdict
from cortex.fleet.link import JobEvent, Link
from cortex.fleet.mailbox import Mailbox
from cortex.fleet.view import LinkState

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Of one job that is lost to faults before it has begun."""
BACKOFF_S = 0.1
"""Before the second attempt; doubles."""
OVERDUE_S = 5.0
"""Beyond its budget a job is given up here, should the neuron not have said so."""
NO_NEURON_RETRY_S = 2.0

ELSEWHERE = frozenset({
    Code.BUSY, Code.NO_CAPACITY, Code.MODEL_NOT_FOUND, Code.MODEL_LOADING_FAILED, Code.MODEL_UNLOADED,
    Code.SHUTTING_DOWN, Code.DEVICE_UNAVAILABLE,
})  # fmt: skip
"""Codes that say something about one neuron: the next candidate may well serve the job."""


class Track:
    """One job on its way."""

    def __init__(self, call: "JobCall", index: int, job: Job, now: float) -> None:
        self.call = call
        self.index = index
        self.job = job
        self.delivery = Delivery()
        self.began_at = now
        self.node: str | None = None
        """Where it is now; None while it waits to be sent again."""
        self.refusals: dict[str, RequestError] = {}
        """Neurons that cannot take it, and why."""
        self.faults = 0
        self.retry: asyncio.TimerHandle | None = None

    @property
    def key(self) -> JobKey:
        """Its present attempt."""
        return JobKey(self.job.id, self.delivery.attempt)


class JobCall:
    """The jobs of one HTTP request, with the one mailbox of their reader."""

    def __init__(self, client: "JobClient", jobs: list[Job], now: float) -> None:
        self._client = client
        self._mailbox = Mailbox()
        self.tracks = [Track(self, index, job, now) for index, job in enumerate(jobs)]
        self.tokens = 0
        self.first_text_at: float | None = None

    async def next(self, timeout_s: float | None) -> Events:
        """Return all events that are ready; see contract.Call."""
        return await self._mailbox.next(timeout_s)

    def close(self) -> None:
        """Abort what still runs."""
        self._client.drop(self.tracks)

    def fail(self, error: RequestError) -> None:
        """End the call with an error; its other jobs are of no use any more."""
        self._client.drop(self.tracks)
        self._mailbox.put_error(error)

    def begin(self, track: Track, item: StartedItem) -> None:
        """Hand a job's beginning to the reader."""
        self._mailbox.put_start(track.index, item)

    def add(self, track: Track, item: TokenItem) -> None:
        """Hand tokens to the reader; ids without text, as of half a character, only count."""
        self.tokens += len(item.ids)
        if item.text:
            if self.first_text_at is None:
                self.first_text_at = self._client.now()
            self._mailbox.put_text(track.index, item.text)

    def end(self, track: Track, item: EndedItem) -> None:
        """Hand a job's good end to the reader."""
        self._mailbox.put_end(track.index, item)


class JobClient:
    """All running jobs of this gateway process."""

    def __init__(self, links: Mapping[str, Link], catalogue: Catalogue, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds, the event loop's."""
        self._links = links
        self._catalogue = catalogue
        self.now = clock
        self._tracks: dict[str, Track] = {}

    def __len__(self) -> int:
        return len(self._tracks)

    def submit(self, jobs: list[Job]) -> JobCall:
        """Send the jobs of one request, all of one model. Raises RequestError if no neuron can take them."""
        call = JobCall(self, jobs, self.now())
        self._tracks.update({t.job.id: t for t in call.tracks})
        try:
            error = self._place(call.tracks)
        except RequestError:
            self.drop(call.tracks)
            raise
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
        """Give up jobs that have not begun long after their budget."""
        now = self.now()
        for track in list(self._tracks.values()):
            budget_ms = track.job.budget_ms
            if budget_ms is None or track.delivery.is_started or track.job.id not in self._tracks:
                continue
            if now - track.began_at > budget_ms / 1000 + OVERDUE_S:
                track.call.fail(RequestError(Code.DEADLINE_EXCEEDED, f"not begun after {now - track.began_at:.0f} s"))

    # ── what links tell ─────────────────────────────────────────────────────────────────────────────────────────────

    def live(self, node: str) -> list[JobKey]:
        """Return the jobs that are to run on a neuron."""
        return [t.key for t in self._tracks.values() if t.node == node]

    def handle(self, node: str, event: JobEvent) -> None:
        """Take events of jobs from a neuron."""
        stale: list[JobKey] = []
        for item in event.items:
            track = self._tracks.get(item.job)
            if track is None:
                continue  # aborted; the neuron knows, or learns it from the next Beat
            if track.node != node or item.attempt != track.delivery.attempt:
                if not isinstance(item, EndedItem | FailedItem):
                    stale.append(JobKey(item.job, item.attempt))
                continue
            self._take(track, item)
        if stale:
            self._links[node].abort(stale)

    def _take(self, track: Track, item: StartedItem | TokenItem | EndedItem | FailedItem) -> None:
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
            case FailedItem():
                track.node = None
                self._failed(track, item)
                return
        if verdict is Verdict.GAP:
            self._recover(track, _error(Code.TOKENS_LOST, "part of the answer was lost on the way", retriable=True))

    def lose(self, node: str, message: str) -> None:
        """Give up all jobs on a neuron that does not have them any more."""
        for track in [t for t in self._tracks.values() if t.node == node]:
            if track.job.id in self._tracks:  # the failure of one may have ended its siblings
                track.node = None
                self._recover(track, _error(Code.NEURON_LOST, message, retriable=True))

    def _failed(self, track: Track, item: FailedItem) -> None:
        retry_s = None if item.retry_after_ms is None else item.retry_after_ms / 1000
        error = RequestError(
            item.code, item.message, param=item.param, retriable=item.retriable, retry_after_s=retry_s
        )
        self._recover(track, error)

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self, track: Track, error: RequestError) -> None:
        """Send a job again that has failed before it began; anything else ends its call."""
        node = track.node
        if node is not None:
            self._links[node].abort([track.key])
            track.node = None
        # A job that has begun could be resumed from here with the tokens it delivered.
        if track.delivery.is_started:
            track.call.fail(error)
        elif error.code in ELSEWHERE:
            self._try_next(track, error)
        elif error.retriable and track.faults + 1 < ATTEMPTS:
            track.faults += 1
            delay_s = BACKOFF_S * 2 ** (track.faults - 1)
            log.warning("job is sent again", extra=fields(code=error.code, why=error.message, **_names(track)))
            track.delivery.begin_attempt()
            track.refusals.clear()
            track.retry = asyncio.get_running_loop().call_later(delay_s, self._try_again, track, error)
        else:
            track.call.fail(error)

    def _try_next(self, track: Track, error: RequestError) -> None:
        track.delivery.begin_attempt()
        self._try_again(track, error)

    def _try_again(self, track: Track, error: RequestError) -> None:
        track.retry = None
        track.call.fail(error)

    def _place(self, tracks: list[Track]) -> RequestError | None:
        return None


def _error(code: Code, message: str, *, retriable: bool) -> RequestError:
    return RequestError(code, message, retriable=retriable)


def _names(track: Track) -> dict[str, str]:
    return {"request_id": track.job.request_id, "job": track.job.id, "model": track.job.model}
