"""A peer of a neuron's bus made of one socket, which says what a test wants it to say."""

from typing import Literal

import zmq

from common.codec import decode_from_neuron, encode
from common.endpoint import SocketFile
from common.ids import new_incarnation
from common.keys import Credentials
from common.messages import PROTOCOL_VERSION, FromNeuron, Hello
from common.sockets import bus_dealer

PATIENCE_S = 10.0


def hello(incarnation: str, role: Literal["gateway", "admin"] = "admin") -> Hello:
    """Return what opens a connection."""
    return Hello(version=PROTOCOL_VERSION, incarnation=incarnation, role=role, name="test")


class BusPeer:
    """Use as a context manager."""

    def __init__(self, address: str | SocketFile, credentials: Credentials | None = None) -> None:
        self.incarnation = new_incarnation()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        where = address if isinstance(address, str) else address.zmq
        self._socket = bus_dealer(self._context, where, self.incarnation, credentials)

    def __enter__(self) -> "BusPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    @property
    def is_connected(self) -> bool:
        """Whether a handshake has succeeded."""
        return self.wait_connected(0.0)

    def wait_connected(self, timeout_s: float) -> bool:
        """Say whether a handshake succeeds within the time."""
        return bool(self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT))

    def send(self, message: object) -> None:
        """Send, once there is a connection."""
        assert self.wait_connected(PATIENCE_S)
        self._socket.send(encode(message))  # type: ignore[arg-type]

    def receive(self, timeout_s: float = PATIENCE_S) -> FromNeuron | None:
        """Return the next message; None: there is none within the time."""
        return decode_from_neuron(self._socket.recv()) if self._socket.poll(int(timeout_s * 1000)) else None
