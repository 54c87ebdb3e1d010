"""The jobs of one HTTP request, each on its way to one end."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec import structs

from common.errors import RequestError
from common.messages import EndedItem, Job, JobKey, RenderedItem, StartedItem, TokenItem
from cortex.fleet.contract import Events
from cortex.fleet.delivery import Delivery
from cortex.fleet.mailbox import Mailbox, Turn
from cortex.fleet.record import Record
from cortex.fleet.recovery import Recovery


class Owner(Protocol):
    """Who sends and aborts the jobs."""

    turn: Turn
    """Of all the jobs: their readers are told when the last message that is there has been taken."""
    tokens: int
    """Received so far, of all jobs."""

    def now(self) -> float:
        """Return the event loop's clock."""

    def drop(self, tracks: "list[Track]") -> None:
        """Forget jobs, and abort them where they run."""

    def explain_wait(self, track: "Track") -> str | None:
        """Return what a job that has not begun waits for."""


class Track:
    """One job: where it is, and what has been tried."""

    def __init__(self, call: "JobCall", index: int, job: Job, now: float) -> None:
        self.call = call
        self.index = index
        self.job = job
        self.delivery = Delivery()
        self.accepted_at = now
        self.node: str | None = None
        """The neuron that has it; None while it waits to be sent again."""
        self.refusals: dict[str, RequestError] = {}
        """Neurons that cannot take it, and why."""
        self.recovery = Recovery()
        self.failed_on: str | None = None
        """Where the last fault happened."""
        self.patient_until = 0.0
        """Until then nothing is loaded elsewhere for this job: its neuron may be back."""
        self.strikes = 0
        """What neurons hold against it: workers that ended while they computed it alone,"""
        self.shared_deaths = 0
        """and among others."""
        self.retry: asyncio.TimerHandle | None = None
        self.is_over = False
        self.silent = 0
        """Tokens received whose text is held back, as of half a character."""

    @property
    def key(self) -> JobKey:
        """Its present attempt."""
        return JobKey(self.job.id, self.delivery.attempt)

    def remaining_ms(self, now: float) -> int | None:
        """Return what is left of its budget, None for no limit."""
        if self.job.budget_ms is None:
            return None
        return self.job.budget_ms - int((now - self.accepted_at) * 1000)

    def renew(self, now: float) -> Job:
        """Return the job as its present attempt is to be sent."""
        if self.delivery.attempt == 0:
            return self.job
        return structs.replace(
            self.job,
            attempt=self.delivery.attempt,
            budget_ms=self.remaining_ms(now),
            resume_tokens=self.delivery.resume_tokens,
            resume_vocabulary=self.delivery.resume_vocabulary,
            resume_text=self.delivery.resume_text,
            strikes=self.strikes,
            shared_deaths=self.shared_deaths,
        )


class JobCall:
    """The tracks of one request, and the one mailbox of their reader. Implements contract.Call."""

    def __init__(self, owner: Owner, jobs: list[Job], *, is_cold: bool) -> None:
        self._owner = owner
        self._mailbox = Mailbox(owner.turn)
        self.tracks = [Track(self, index, job, owner.now()) for index, job in enumerate(jobs)]
        self.record = Record(owner.now(), is_cold=is_cold)
        self.tokens = 0
        self.first_text_at: float | None = None

    async def next(self, timeout_s: float | None) -> Events:
        """Return all events that are ready; see contract.Call."""
        return await self._mailbox.next(timeout_s)

    def take(self) -> Events:
        """Return all events that are ready; see contract.Call."""
        return self._mailbox.take()

    def listen(self, on_ready: Callable[[], None] | None) -> None:
        """Have a function called when there are events; see contract.Call."""
        self._mailbox.listen(on_ready)

    def waits_for(self) -> str | None:
        """Return what the first job that has not begun waits for; see contract.Call."""
        track = next((t for t in self.tracks if not t.delivery.is_started), None)
        return None if track is None else self._owner.explain_wait(track)

    def close(self) -> None:
        """Abort what still runs."""
        self._owner.drop(self.tracks)

    def fail(self, error: RequestError) -> None:
        """End the call with an error; its other jobs are of no use any more."""
        self._owner.drop(self.tracks)
        self._mailbox.put_error(error)

    def begin(self, track: Track, item: StartedItem) -> None:
        """Hand a job's beginning to the reader."""
        self.record.begin(track.job, item, self._owner.now())
        self._mailbox.put_start(track.index, item)

    def add(self, track: Track, item: TokenItem) -> None:
        """Hand tokens to the reader; ids without text, as of half a character, only count."""
        now = self._owner.now()
        if item.ids:
            self.tokens += len(item.ids)
            self._owner.tokens += len(item.ids)
            self.record.add(track.job.id, len(item.ids), now)
        if item.text or item.logprobs:
            if self.first_text_at is None:
                self.first_text_at = now
            self._mailbox.put_text(track.index, item.text, item.logprobs, tokens=track.silent + len(item.ids))
            track.silent = 0
        else:
            track.silent += len(item.ids)

    def end(self, track: Track, item: EndedItem | RenderedItem) -> None:
        """Hand a job's good end to the reader, with the counts of the attempt that it has seen begin."""
        first = track.delivery.first
        if first is not None and isinstance(item, EndedItem):
            item = structs.replace(item, prompt_tokens=first.prompt_tokens, cached_tokens=first.cached_tokens)
            self.record.end(track.job.id, item)
        self._mailbox.put_end(track.index, item)
