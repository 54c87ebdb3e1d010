"""The worker's line to the supervisor. Used by the loop's thread only; `wake` alone may be called from anywhere."""

import logging
import os
import select
import socket

from common.codec import decode_to_worker
from common.errors import ProtocolError
from common.frames import FrameSocket
from common.messages import ToWorker

log = logging.getLogger(__name__)

LINGER_S = 0.2
"""For the last messages of a worker that ends."""


class Bus:
    """An inherited socket, and a way to end a wait for it."""

    def __init__(self, line: int) -> None:
        """`line` is the socket's file descriptor."""
        self._socket = socket.socket(fileno=line)
        self._socket.setblocking(False)
        self._line = FrameSocket(self._socket)
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(line, select.POLLIN)

    def receive(self) -> list[ToWorker]:
        """Return the messages that have come, without waiting. Raises EOFError if the supervisor is gone."""
        messages: list[ToWorker] = []
        for parts in self._line.receive():
            try:
                if len(parts) != 1:
                    raise ProtocolError(f"{len(parts)} parts instead of one")
                messages.append(decode_to_worker(parts[0]))
            except ProtocolError as error:
                log.error("undecodable message from the supervisor: %s", error)
        return messages

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        """Send to a gateway, or to the supervisor itself (""); False if there is no room now."""
        return self._line.send([gateway.encode(), kind, payload])

    def wait(self, timeout_s: float) -> None:
        """Return when a message is there, someone calls `wake`, or the time is over."""
        wants = select.POLLIN | (select.POLLOUT if self._line.has_backlog else 0)
        self._poll.modify(self._line.fileno(), wants)
        for ready, _ in self._poll.poll(timeout_s * 1000):
            if ready == self._wakeup:
                os.eventfd_read(self._wakeup)
        self._line.flush()

    def wake(self) -> None:
        """End a wait, now or the next one."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Let the last messages out, then close."""
        self._socket.settimeout(LINGER_S)
        try:
            self._line.flush()
        except TimeoutError:
            log.warning("the supervisor did not take the last messages")
        self._line.close()
        os.close(self._wakeup)
