"""A streamed reply on its way from its call to its connection.

Where the connection takes bytes directly, they are written to it in the same turn of the loop in which their tokens
came: no task is woken for a token, and nothing is awaited. While the connection is full nothing is taken, and what
comes is merged.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Protocol

from common.errors import RequestError
from cortex.api import errors
from cortex.api.exchange import Exchange
from cortex.dialects import sse
from cortex.dialects.contract import Stream
from cortex.fleet.contract import Call, Events

log = logging.getLogger(__name__)

EXTENSION = "helexa.outlet"
"""Where the ASGI scope's extensions have the connection's Outlet."""


class Outlet(Protocol):
    """A connection whose response has begun."""

    on_room: Callable[[], None] | None
    """Called when it is full no more."""

    @property
    def is_full(self) -> bool:
        """Whether its client is behind: nothing should be written."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""


def outlet_of(scope: dict[str, Any]) -> Outlet | None:
    """Return the connection of a request; None where only ASGI leads to it."""
    outlet: Outlet | None = scope.get("extensions", {}).get(EXTENSION)
    return outlet


class Relay:
    """One streamed reply."""

    def __init__(self, exchange: Exchange, call: Call, stream: Stream, ping_s: float) -> None:
        """`ping_s`: after so much silence a comment is sent."""
        self._exchange = exchange
        self._call = call
        self._stream = stream
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._silent_since = self._loop.time()
        self._is_over = False
        self._end: asyncio.Future[None] = self._loop.create_future()
        """Done when all has been written to the outlet."""
        self._timer: asyncio.TimerHandle | None = None

    async def pieces(self, first: Events | RequestError, outlet: Outlet | None) -> AsyncIterator[bytes]:
        """Yield what is to be sent, one piece for all events that are ready.

        `first`: the first events, or why there are none. With an outlet only their piece is yielded, which sends the
        head, too; the rest is written.
        """
        is_waiting = not first
        data = self._fail(first) if isinstance(first, RequestError) else self._read(first)
        while True:
            if not data and (is_waiting or self._is_silent()):
                data = self._comment()
            if data:
                yield data
            if self._is_over:
                return
            if outlet is not None:
                await self._write_to(outlet)
                return
            try:
                events = await self._call.next(self._ping_s)
            except RequestError as error:
                data = self._fail(error)
            else:
                is_waiting = not events
                data = self._read(events)

    async def _write_to(self, outlet: Outlet) -> None:
        write = partial(self._write, outlet)
        outlet.on_room = write
        self._call.listen(write)
        self._watch(outlet)
        try:
            write()
            await self._end
        finally:
            self._call.listen(None)
            outlet.on_room = None
            if self._timer is not None:
                self._timer.cancel()

    def _write(self, outlet: Outlet) -> None:
        """Write what is ready; what comes while the client is behind waits for it, merged."""
        if outlet.is_full or self._end.done():
            return
        try:
            events = self._call.take()
        except RequestError as error:
            data = self._fail(error)
        else:
            data = self._read(events) if events else b""
        if data:
            outlet.write(data)
        if self._is_over and not self._end.done():
            self._end.set_result(None)

    def _watch(self, outlet: Outlet) -> None:
        """Break the silence when it is due; a client that is behind hears nothing before it has read."""
        if self._is_silent():
            if outlet.is_full:
                self._silent_since = self._loop.time()
            else:
                outlet.write(self._comment())
        wait_s = self._silent_since + self._ping_s - self._loop.time()
        self._timer = self._loop.call_later(wait_s, self._watch, outlet)

    def _read(self, events: Events) -> bytes:
        """Return what is to be sent for these events; note the end."""
        try:
            data = self._stream.feed(events)
        except Exception as error:
            return self._fail(error)
        if data:
            self._silent_since = self._loop.time()
        self._is_over = self._stream.is_complete
        return data

    def _is_silent(self) -> bool:
        """Say whether a comment is due, also while tokens come of which nothing can be shown, as inside a call."""
        return self._loop.time() - self._silent_since >= self._ping_s

    def _comment(self) -> bytes:
        reason, self._silent_since = self._call.waits_for(), self._loop.time()
        return sse.comment(reason) if reason else self._stream.ping()

    def _fail(self, error: Exception) -> bytes:
        """Return the last words of a reply that fails; a defect of ours is told to the log."""
        self._is_over = True
        if not isinstance(error, RequestError):
            log.error("request %s failed in mid-stream", self._exchange.request_id, exc_info=error)
            error = errors.internal_error()
        self._exchange.outcome = error.code.value
        return self._stream.fail(errors.envelope(error, self._exchange.path, self._exchange.request_id))
