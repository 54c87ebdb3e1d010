"""The job client: believes only what comes in order, and has every job end once, whatever ends under it.

Every attempt has a new number, so what an old one still says is recognised. A new attempt carries the tokens that have
been delivered; the neuron goes on from there, and the HTTP client sees a pause.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from common.catalogue import Catalogue
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
from common.poison import fingerprint
from cortex.fleet.calls import JobCall, Track
from cortex.fleet.delivery import Verdict
from cortex.fleet.link import JobEvent, Link
from cortex.fleet.mailbox import Turn
from cortex.fleet.placer import Placer
from cortex.fleet.recovery import Kind, Patience, classify
from cortex.fleet.view import Node

log = logging.getLogger(__name__)

OVERDUE_S = 5.0
"""So long after its budget a job is given up here, should the neuron not have said so."""


class JobClient:
    """All running jobs of this gateway process."""

    def __init__(
        self,
        links: Mapping[str, Link],
        catalogue: Catalogue,
        clock: Callable[[], float],
        *,
        recovery_s: float,
        node_grace_s: float,
    ) -> None:
        """`clock`: monotonic seconds, the event loop's."""
        self._links = links
        self._clock = clock
        self._recovery_s = recovery_s
        self._node_grace_s = node_grace_s
        self._tracks: dict[str, Track] = {}
        self.turn = Turn()
        self.tokens = 0
        """Received so far, of all jobs."""
        self.placer = Placer(links, catalogue, clock, self._refused, node_grace_s)

    def __len__(self) -> int:
        return len(self._tracks)

    def now(self) -> float:
        """Return the clock's time."""
        return self._clock()

    def submit(self, jobs: list[Job]) -> JobCall:
        """Send the jobs of one request, all of one model. Raises RequestError if it is known that no neuron takes them.

        Where a model that nobody has is to be loaded is agreed on first, so these jobs are sent a moment later.
        """
        if self._is_poisoned(jobs[0]):
            text = "this request has ended the workers that computed it, and is refused for some minutes"
            raise RequestError(Code.POISONED_REQUEST, text)
        call = JobCall(self, jobs, is_cold=jobs[0].answer == "generated" and not self.placer.is_loaded(jobs[0].model))
        self._tracks.update({t.job.id: t for t in call.tracks})
        error = self.placer.place(call.tracks)
        if isinstance(error, Patience):
            self._refused(call.tracks, error)
        elif error is not None:
            self.drop(call.tracks)
            raise error
        return call

    def _is_poisoned(self, job: Job) -> bool:
        """Say whether any neuron has told that such a request ends workers."""
        known = [link.node.poisoned for link in self._links.values() if link.node.poisoned]
        if not known:
            return False
        mark = fingerprint(job)
        return any(mark in marks for marks in known)

    def drop(self, tracks: list[Track]) -> None:
        """Forget jobs, and abort them where they run."""
        keys: dict[str, list[JobKey]] = {}
        for track in tracks:
            if self._tracks.pop(track.job.id, None) is None:
                continue
            track.is_over = True
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
        self.placer.tick()
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
        self.placer.learn(node, state)

    def claimed(self, node: str, message: Claimed) -> None:
        """Take a registrar's answer."""
        self.placer.claimed(node, message)

    def explain_wait(self, track: Track) -> str | None:
        """Return what a job that has not begun waits for, as its neuron's last state tells."""
        state = None if track.node is None else self._links[track.node].node.models.get(track.job.model)
        if state is None:
            return None
        if state.status in ("loading", "recovering"):
            progress = max((r.progress for r in state.replicas if r.progress is not None), default=None)
            return "loading" if progress is None else f"loading {progress:.0%}"
        if state.waits_for_room:
            return "waiting for room"
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
                    if track.recovery.since is not None:
                        call.record.note_resumed(track.job.id)
                    track.recovery.end()
                    if item.ids:
                        call.add(track, item)
            case StartedItem():
                verdict = delivery.judge_start(item)
                if verdict is Verdict.ACCEPT:
                    self._begin(track, item)
            case EndedItem():
                verdict = delivery.judge_end(item.attempt, item.total)
                if verdict is Verdict.ACCEPT:
                    self._end(track)
                    call.record.note_resumed(track.job.id)
                    for words in delivery.last_words:
                        call.add(track, words)
                    call.end(track, item)
            case RenderedItem():
                self._end(track)
                call.end(track, item)
                return
            case FailedItem():
                track.strikes = max(track.strikes, item.strikes)
                track.shared_deaths = max(track.shared_deaths, item.shared_deaths)
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

    def suspect(self, node: str, message: str) -> None:
        """Have jobs whose model is hot elsewhere go on there; a neuron that comes back hears that they are gone."""
        for track in [t for t in self._tracks.values() if t.node == node]:
            if track.job.id in self._tracks and self.placer.is_hot_beside(track.job.model, node):
                self._recover(track, RequestError(Code.NEURON_LOST, message, retriable=True))

    def lose(self, node: str, message: str) -> None:
        """Give up all jobs on a neuron that does not have them any more."""
        for track in [t for t in self._tracks.values() if t.node == node]:
            if track.job.id in self._tracks:  # else a sibling's failure has ended its call
                self._recover(track, RequestError(Code.NEURON_LOST, message, retriable=True))

    def _begin(self, track: Track, item: StartedItem) -> None:
        track.call.record.node = track.node
        if track.delivery.first is item:
            track.call.begin(track, item)
            return
        pause_s = self.now() - (track.recovery.since or self.now())
        log.info(
            "stream goes on", extra=self._fields(track, node=track.node, tokens=item.resumed, pause_s=round(pause_s, 3))
        )

    def _end(self, track: Track) -> None:
        del self._tracks[track.job.id]
        track.is_over = True

    # Attempts.

    def _recover(self, track: Track, error: RequestError) -> None:
        """Have a job that its neuron does not run any more go on with what has been delivered; or end its call."""
        node, track.node = track.node, None
        kind = classify(error)
        if error.code is Code.CONTEXT_LENGTH_EXCEEDED and node is not None and self.placer.has_longer(track, node):
            kind = Kind.REFUSAL
        if kind is Kind.FINAL or (kind is Kind.FAULT and not track.recovery.note_fault()):
            track.call.fail(error)
            return
        track.delivery.begin_attempt()
        if kind is Kind.FAULT:
            log.warning("job is sent again", extra=self._fields(track, node=node, why=error.message))
            track.call.record.note_fault(track.job.id)
            track.refusals.clear()
            track.failed_on = None if error.code is Code.TOKENS_LOST else node  # its KV is still there
            if error.code is Code.NEURON_LOST:
                track.patient_until = self.now() + self._node_grace_s
            self._try_later(track, error)
        elif node is not None:
            track.refusals[node] = error
            refusal = self.placer.place([track])
            if refusal is not None:
                self._refused([track], refusal)

    def _refused(self, tracks: list[Track], error: RequestError) -> None:
        """End the call of jobs that no neuron takes; those in trouble that is no fault of theirs wait."""
        for track in tracks:
            if track.is_over:
                return
            is_new = track.delivery.first is None and track.recovery.since is None
            if is_new and not isinstance(error, Patience):
                track.call.fail(error)
            else:
                self._try_later(track, error)

    def _try_later(self, track: Track, error: RequestError) -> None:
        if track.recovery.since is None and track.delivery.first is not None:
            track.accepted_at = self.now()  # each recovery has the whole budget
        delay_s = track.recovery.next_delay(error, self.now(), self._recovery_s)
        if delay_s is None:
            track.call.fail(track.recovery.cause or error)
        elif delay_s == 0.0:
            self._try_again(track)
        else:
            track.retry = asyncio.get_running_loop().call_later(delay_s, self._try_again, track)

    def _try_again(self, track: Track) -> None:
        track.retry = None
        remaining_ms = track.remaining_ms(self.now())
        if remaining_ms is not None and remaining_ms <= 0:
            track.call.fail(_overdue(track))
            return
        error = self.placer.place([track])
        if error is not None:
            track.refusals.clear()
            self._try_later(track, error)

    def _fields(self, track: Track, **more: object) -> dict[str, object]:
        return fields(request_id=track.job.request_id, job=track.job.id, model=track.job.model, **more)


def _overdue(track: Track) -> RequestError:
    budget_s = (track.job.budget_ms or 0) / 1000
    return RequestError(Code.DEADLINE_EXCEEDED, f"the request had not begun after {budget_s:g} s")
