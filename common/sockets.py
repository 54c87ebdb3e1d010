"""The one place where ZeroMQ sockets are made, and their attachment to an asyncio loop.

Why each option has its value stands beside it; docs/protocol.md tells the measurements.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from common.codec import MAX_FRAME_BYTES
from common.keys import Credentials, KeyPair

log = logging.getLogger(__name__)

SEND_HWM = 1000
"""Messages a peer may be behind before a send says EAGAIN."""
_POLLIN = int(zmq.POLLIN)
DRAIN_AT_ONCE = 256
"""Messages handled before the loop's other callbacks get a turn."""


def bus_router(context: zmq.Context[zmq.Socket[bytes]], address: str, pair: KeyPair | None = None) -> zmq.Socket[bytes]:
    """Return a ROUTER bound to `address`, the supervisor's side of the bus. Raises zmq.ZMQError (EADDRINUSE, …).

    `pair`: who it is; the bus is encrypted then, and a ZAP handler must have been bound in this context.
    """
    socket = _router(context)
    if pair is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, b"bus")
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no handler, no connection
    try:
        socket.bind(address)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


def local_router(context: zmq.Context[zmq.Socket[bytes]], path: Path) -> zmq.Socket[bytes]:
    """Return a ROUTER bound to a socket file that root and this process's group may use. Raises zmq.ZMQError.

    The kernel says who connects (SO_PEERCRED), beside what the file's mode lets in.
    """
    socket = _router(context)
    socket.setsockopt(zmq.IPC_FILTER_UID, 0)
    socket.setsockopt(zmq.IPC_FILTER_GID, os.getegid())
    mask = os.umask(0o117)
    try:
        socket.bind(f"ipc://{path}")
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    finally:
        os.umask(mask)
    return socket


def change_key(socket: zmq.Socket[bytes], pair: KeyPair) -> str:
    """Close a ROUTER's address and all its connections, and give it another key; return the address to bind anew.

    The port is free a moment later only: it is closed in another thread.
    """
    address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.unbind(address)
    return address


def bus_dealer(
    context: zmq.Context[zmq.Socket[bytes]], address: str, incarnation: str, credentials: Credentials | None = None
) -> zmq.Socket[bytes]:
    """Return a DEALER connected to `address`; its routing id is the incarnation of this peer.

    Without `credentials` it speaks plain text, which a neuron with keys does not answer, and the other way round.
    """
    socket = _configure(context.socket(zmq.DEALER))
    socket.setsockopt(zmq.ROUTING_ID, incarnation.encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)  # queue only on a live connection: nothing stale runs after a reconnect
    socket.setsockopt(zmq.RECONNECT_IVL, 50)  # ms
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)  # a neuron that comes back is picked up within a second
    if credentials is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, credentials.neuron)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, credentials.pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, credentials.pair.secret)
    socket.connect(address)
    return socket


def _router(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket = _configure(context.socket(zmq.ROUTER))
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a send to a peer that is gone or full fails instead of vanishing
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a peer that reconnects before its old TCP connection is known dead
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    return socket


def _configure(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    socket.setsockopt(zmq.SNDHWM, SEND_HWM)
    socket.setsockopt(zmq.RCVHWM, SEND_HWM)
    socket.setsockopt(zmq.LINGER, 200)  # ms; a last message gets out, a dead peer does not hold up the exit
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)  # ms; a peer whose host vanished is disconnected
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
    return socket


def receive_with_user(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Receive as recv_multipart does, with the sender's User-Id of the handshake before the frames."""
    frames = socket.recv_multipart(zmq.DONTWAIT, copy=False)
    return [str(frames[-1].get("User-Id")).encode(), *(frame.bytes for frame in frames)]


class Channel:
    """A socket on the running asyncio loop: `handle(frames)` is called for each message; sending never waits.

    ZeroMQ's file descriptor is edge-triggered and shared by both directions: a send can swallow the edge that announces
    a message. So every wake-up, and every send from elsewhere, is followed by a look at EVENTS, which is a third of the
    price of a receive that finds nothing.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        handle: Callable[[list[bytes]], None],
        receive: Callable[[], list[bytes]] | None = None,
    ) -> None:
        """`receive`: instead of a plain recv_multipart."""
        self._socket = socket
        self._receive = receive or partial(socket.recv_multipart, zmq.DONTWAIT)
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._is_draining = False
        self._is_scheduled = False
        self._is_closed = False
        self._loop.add_reader(socket.fileno(), self._drain)
        self._schedule()

    def send(self, frames: list[bytes]) -> None:
        """Send one multipart message, or raise zmq.Again (peer full or none connected), zmq.ZMQError EHOSTUNREACH."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        finally:
            if not self._is_draining:
                self._schedule()

    def can_send(self) -> bool:
        """Say whether a message would be taken now: there is a peer, and it is not too far behind."""
        events = int(self._socket.getsockopt(zmq.EVENTS))
        self._schedule()
        return bool(events & zmq.POLLOUT)

    def close(self) -> None:
        """Stop handling and close the socket."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _has_message(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _POLLIN)

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            self._loop.call_soon(self._drain_scheduled)

    def _drain_scheduled(self) -> None:
        self._is_scheduled = False
        self._drain()

    def _drain(self) -> None:
        self._is_draining = True
        try:
            for _ in range(DRAIN_AT_ONCE):
                if self._is_closed or not self._has_message():
                    return
                try:
                    self._handle(self._receive())
                except Exception:
                    # One bad message must not end the loop that serves all the others.
                    log.exception("message handler failed")
        finally:
            self._is_draining = False
        self._schedule()
