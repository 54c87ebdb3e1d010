"""Where gateways and neuronctl come in: the bus's address, and a socket file for who administers this host.

What a sender may say is judged here, message by message; what comes through is a peer's.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zmq

from common.codec import decode_to_neuron, encode
from common.errors import Code, ProtocolError, RequestError
from common.messages import Done, Join, Refused, ToNeuron
from common.sockets import Channel, bus_router, change_key, local_router, receive_with_user
from neuron.broker.authorized import check_role
from neuron.broker.gate import ROUTING_IDS, Gate

log = logging.getLogger(__name__)

RELOAD_S = 0.5
"""Between looks at the files of keys."""
REBIND_S = 0.01
"""Between attempts to bind the address with another key."""
COMPLAINT_S = 5.0
"""An address that cannot be bound anew is logged no more often than this."""


class Doors:
    """The sockets that peers connect to."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        listen: str,
        *,
        gate: Gate | None,
        local: Path | None,
        hear: Callable[[str, ToNeuron], None],
        lose: Callable[[str, str], None],
        complain: Callable[[ProtocolError], None],
    ) -> None:
        """Bind. Raises zmq.ZMQError, for example EADDRINUSE.

        `gate`: who may come in by `listen`; None: everybody, in plain text. `local`: the socket file. `hear` takes each
        message with its sender's routing id, `lose` a peer that is let in no more and why, `complain` whatever is no
        message.
        """
        self._loop = asyncio.get_running_loop()
        self._gate = gate
        self._hear = hear
        self._lose = lose
        self._complain = complain
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._inside: dict[str, None] = {}
        """Routing ids that came by the socket file."""
        self._router = bus_router(context, listen, None if gate is None else gate.pair)
        self._local: Channel | None = None
        if local is not None:
            try:
                self._local = Channel(local_router(context, local), self._from_local)
            except zmq.ZMQError:
                self._router.close(linger=0)
                raise
        if gate is None:
            self._public = Channel(self._router, self._from_anybody)
        else:
            self._public = Channel(
                self._router, partial(self._from_key, gate), partial(receive_with_user, self._router)
            )
            self._reload(gate)

    def close(self) -> None:
        """Close all doors."""
        for timer in self._timers.values():
            timer.cancel()
        self._public.close()
        if self._local is not None:
            self._local.close()
        if self._gate is not None:
            self._gate.close()

    def send(self, peer: str, payload: bytes) -> None:
        """Send to a peer, the way it came. Raises zmq.Again (it is behind), zmq.ZMQError EHOSTUNREACH (it is gone)."""
        channel = self._local if self._local is not None and peer in self._inside else self._public
        channel.send([peer.encode(), payload])

    def _from_anybody(self, frames: list[bytes]) -> None:
        try:
            peer, message = _read(frames)
            if peer in self._inside:
                raise ProtocolError("a routing id that came by the socket file")
            self._hear(peer, message)
        except ProtocolError as error:
            self._complain(error)

    def _from_local(self, frames: list[bytes]) -> None:
        """Take a message of root or of the service's group: the kernel has let nobody else in."""
        try:
            peer, message = _read(frames)
            if self._gate is not None and self._gate.owns(peer):
                raise ProtocolError("a routing id that belongs to a key")
            self._inside[peer] = None
            if len(self._inside) > ROUTING_IDS:
                del self._inside[next(iter(self._inside))]
            try:
                check_role("admin", message, "who comes by the socket file")
            except RequestError as error:
                self._refuse(peer, message, error)
            else:
                self._hear(peer, message)
        except ProtocolError as error:
            self._complain(error)

    def _from_key(self, gate: Gate, frames: list[bytes]) -> None:
        """Take a message whose sender is known by key: `[user, routing id, message]`."""
        try:
            user = _name(frames[0])
            if gate.role(user) is None:
                return  # revoked since its handshake; it was told once
            peer, message = _read(frames[1:])
            if peer in self._inside:
                raise ProtocolError("a routing id that came by the socket file")
            try:
                gate.judge(user, peer, message)
                if isinstance(message, Join):
                    self._admit(gate, user, peer, message)
                else:
                    self._hear(peer, message)
            except RequestError as error:
                self._refuse(peer, message, error)
        except ProtocolError as error:
            self._complain(error)

    def _admit(self, gate: Gate, user: str, peer: str, join: Join) -> None:
        gate.admit(user, join)
        self._tell(peer, encode(Done(request=join.request, text="this key is let in as a gateway")))
        self._look(gate)

    def _refuse(self, peer: str, message: ToNeuron, error: RequestError) -> None:
        log.warning("peer %s: %s", peer[:8], error.message)
        request = getattr(message, "request", None)
        self._tell(peer, encode(Refused(request=request, code=error.code, message=error.message)))

    def _tell(self, peer: str, payload: bytes) -> None:
        try:
            self.send(peer, payload)
        except zmq.ZMQError as error:  # full, or gone: it has not listened
            log.warning("peer %s does not take an answer: %s", peer[:8], error.strerror)

    def _reload(self, gate: Gate) -> None:
        self._timers["reload"] = self._loop.call_later(RELOAD_S, self._reload, gate)
        self._look(gate)
        if gate.renew():
            self._rebind(change_key(self._router, gate.pair), time.monotonic())

    def _look(self, gate: Gate) -> None:
        for peer in gate.reload():
            text = "this key was revoked, or has another role now"
            self._tell(peer, encode(Refused(code=Code.PERMISSION_DENIED, message=text)))
            self._lose(peer, "its key was revoked or changed")

    def _rebind(self, address: str, complained_at: float) -> None:
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            if time.monotonic() - complained_at > COMPLAINT_S:
                complained_at = time.monotonic()
                log.error("%s cannot be bound anew: %s", address, error.strerror)
            self._timers["rebind"] = self._loop.call_later(REBIND_S, self._rebind, address, complained_at)


def _read(frames: list[bytes]) -> tuple[str, ToNeuron]:
    """Return sender and message of `[routing id, message]`. Raises ProtocolError."""
    if len(frames) != 2:
        raise ProtocolError(f"{len(frames) - 1} frames instead of one")
    return _name(frames[0]), decode_to_neuron(frames[1])


def _name(frame: bytes) -> str:
    try:
        return frame.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("a routing id that is not an incarnation") from None
