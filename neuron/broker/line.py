"""The supervisor's end of one child's line, on its asyncio loop. Shell; decides nothing."""

import asyncio
import logging
import socket
from collections.abc import Callable

from common.errors import ProtocolError
from common.frames import FrameSocket

log = logging.getLogger(__name__)

BACKLOG_BYTES = 64 * 1024 * 1024
"""What waits for a child that does not read; the watchdog ends such a child long before."""


class Line:
    """Calls `handle(parts)` for each message; sending never waits."""

    def __init__(self, end: socket.socket, handle: Callable[[list[bytes]], None]) -> None:
        end.setblocking(False)
        self._line = FrameSocket(end, backlog_bytes=BACKLOG_BYTES)
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._is_writing = False
        self._is_open = True
        self._loop.add_reader(self._line.fileno(), self._read)

    def send(self, payload: bytes) -> bool:
        """Send a message; False if the child is too far behind."""
        is_taken = self._line.send([payload])
        self._watch_room()
        return is_taken

    def drain(self) -> None:
        """Handle what a child that is gone has still sent."""
        while self._is_open and self._read():
            pass

    def close(self) -> None:
        """Close this end."""
        self._stop_reading()
        if self._is_writing:
            self._loop.remove_writer(self._line.fileno())
        self._line.close()

    def _read(self) -> bool:
        """Handle the messages of one read; say whether there were any."""
        try:
            messages = self._line.receive()
        except EOFError:
            self._stop_reading()  # its exit is reported by the pidfd
            return False
        except ProtocolError as error:
            log.error("a child sends garbage and is not listened to any more: %s", error)
            self._stop_reading()
            return False
        for parts in messages:
            try:
                self._handle(parts)
            except Exception:
                # One bad message must not end the loop that serves all the others.
                log.exception("message handler failed")
        return bool(messages)

    def _stop_reading(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._line.fileno())

    def _watch_room(self) -> None:
        if self._line.has_backlog and not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._line.fileno(), self._flush)

    def _flush(self) -> None:
        if self._line.flush():
            self._is_writing = False
            self._loop.remove_writer(self._line.fileno())
