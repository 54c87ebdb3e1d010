"""Where the events of one call wait for their reader: one slot a job, merged while the reader is slow."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from common.errors import RequestError
from common.messages import EndedItem, RenderedItem, StartedItem, TokenLogprob
from cortex.fleet.contract import Events, Merged, Told, tokens_of

log = logging.getLogger(__name__)

APART = 8
"""Up to so many pieces stay events of their own, which go out in one write; more are behind, and become one."""


class _Slot:
    __slots__ = ("ended", "logprobs", "pieces", "started")

    def __init__(self) -> None:
        self.started: StartedItem | None = None
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.ended: EndedItem | RenderedItem | None = None


class Turn:
    """What is to be called once all that comes in this turn of the loop has been taken."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()

    def add(self, callback: Callable[[], None]) -> None:
        """Call it at the turn's end."""
        if not self._due:
            self._loop.call_soon(self._call)
        self._due.append(callback)

    def _call(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            try:
                callback()
            except Exception:  # the others are other clients'
                log.exception("a reply could not be written")


class Mailbox:
    """One reader, woken at most once for all that comes in one turn of the loop: by a future, or by a call."""

    def __init__(self, turn: Turn) -> None:
        self._slots: dict[int, _Slot] = {}
        """Only jobs that have something."""
        self._error: RequestError | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._turn = turn
        self._on_ready: Callable[[], None] | None = None
        self._is_due = False
        """It is called at the end of this turn."""

    def listen(self, on_ready: Callable[[], None] | None) -> None:
        """Call this instead of waking who waits in next(); None: no more."""
        self._on_ready = on_ready

    def put_start(self, index: int, item: StartedItem) -> None:
        """Take the beginning of a job."""
        self._slot(index).started = item
        self._wake()

    def put_text(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), *, tokens: int = 1) -> None:
        """Take a piece of text, made of so many tokens, with its tokens' log-probabilities if the job asks for them."""
        slot = self._slot(index)
        slot.pieces.append(text if tokens == 1 else Merged(text, tokens))
        if logprobs:
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
        return self.take()

    def take(self) -> Events:
        """Return what is there. Raises the call's error after the last."""
        if not self._slots and self._error is not None:
            raise self._error
        slots, self._slots = self._slots, {}
        events: Events = []
        for index, slot in slots.items():
            if slot.started is not None:
                events.append((index, slot.started))
            if slot.logprobs:
                events.append((index, Told("".join(slot.pieces), slot.logprobs)))
            elif len(slot.pieces) > APART:
                events.append((index, Merged("".join(slot.pieces), sum(tokens_of(p) for p in slot.pieces))))
            else:
                events += [(index, piece) for piece in slot.pieces]
            if slot.ended is not None:
                events.append((index, slot.ended))
        if self._error is not None:
            self._wake()  # who listens is called once for both, and has now seen only the events
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
        if self._on_ready is not None:
            if not self._is_due:
                self._is_due = True
                self._turn.add(self._tell)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell(self) -> None:
        self._is_due = False
        if self._on_ready is not None:
            self._on_ready()
