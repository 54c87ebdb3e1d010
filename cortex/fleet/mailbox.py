"""Where the events of one call wait for their reader: one slot a job, which merges text while the reader is slow."""

import asyncio
from collections.abc import Sequence

from common.errors import RequestError
from common.messages import EndedItem, RenderedItem, StartedItem, TokenLogprob
from cortex.fleet.contract import Events, Told


class _Slot:
    __slots__ = ("ended", "logprobs", "started", "text")

    def __init__(self) -> None:
        self.started: StartedItem | None = None
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.ended: EndedItem | RenderedItem | None = None


class Mailbox:
    """One reader, woken by a future at most once for all that comes in one turn of the loop."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        """Only jobs that have something."""
        self._error: RequestError | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def put_start(self, index: int, item: StartedItem) -> None:
        """Take the beginning of a job."""
        self._slot(index).started = item
        self._wake()

    def put_text(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Take a piece of text, with its tokens' log-probabilities if the job asks for them."""
        slot = self._slot(index)
        slot.text.append(text)
        slot.logprobs += logprobs
        self._wake()

    def put_end(self, index: int, item: EndedItem | RenderedItem) -> None:
        """Take the good end of a job."""
        self._slot(index).ended = item
        self._wake()

    def put_error(self, error: RequestError) -> None:
        """Take the bad end of the whole call; the first one counts."""
        if self._error is None:
            self._error = error
            self._wake()

    async def next(self, timeout_s: float | None) -> Events:
        """Return what is there, waiting up to `timeout_s` for something. Raises the call's error after the last."""
        if not self._slots and self._error is None:
            await self._wait(timeout_s)
        if not self._slots and self._error is not None:
            raise self._error
        slots, self._slots = self._slots, {}
        events: Events = []
        for index, slot in slots.items():
            if slot.started is not None:
                events.append((index, slot.started))
            if slot.logprobs:
                events.append((index, Told("".join(slot.text), slot.logprobs)))
            elif slot.text:
                events.append((index, "".join(slot.text)))
            if slot.ended is not None:
                events.append((index, slot.ended))
        return events

    async def _wait(self, timeout_s: float | None) -> None:
        self._waiter = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _slot(self, index: int) -> _Slot:
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = _Slot()
        return slot

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
