"""The worker's one socket. Used by the loop's thread only; `wake` alone may be called from anywhere."""

import logging
import os
from typing import cast

import zmq

from common.codec import decode_to_worker
from common.errors import ProtocolError
from common.messages import ToWorker
from common.sockets import bus_dealer

log = logging.getLogger(__name__)


class Bus:
    """A DEALER to the supervisor, and a way to end a wait for it."""

    def __init__(self, address: str, incarnation: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = bus_dealer(self._context, address, incarnation)
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wakeup, zmq.POLLIN)

    def receive(self) -> list[ToWorker]:
        """Return the messages that have come, without waiting."""
        messages: list[ToWorker] = []
        while cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = self._socket.recv_multipart(zmq.DONTWAIT)
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"{len(frames)} frames instead of one")
                messages.append(decode_to_worker(frames[0]))
            except ProtocolError as error:
                log.error("undecodable frame from the supervisor: %s", error)
        return messages

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        """Send to a gateway, or to the supervisor itself (""); False if there is no room now."""
        try:
            self._socket.send_multipart([gateway.encode(), kind, payload], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def wait(self, timeout_s: float) -> None:
        """Return when a message is there, someone calls `wake`, or the time is over."""
        for ready, _ in self._poller.poll(int(timeout_s * 1000)):
            if ready == self._wakeup:
                os.eventfd_read(self._wakeup)

    def wake(self) -> None:
        """End a wait, now or the next one."""
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Let the last messages out, then close."""
        self._socket.close()
        self._context.term()
        os.close(self._wakeup)
