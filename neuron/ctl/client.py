"""A synchronous client of one neuron's bus, for neuronctl and tests."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq

from common.codec import decode_from_neuron, encode
from common.endpoint import Endpoint, SocketFile
from common.errors import Code, HelexaError
from common.handshakes import Handshakes, explain
from common.ids import new_incarnation, new_request_id
from common.keys import Credentials
from common.messages import (
    PROTOCOL_VERSION,
    FromNeuron,
    Hello,
    HelloWanted,
    NodeState,
    Progress,
    Refused,
    Version,
)
from common.sockets import bus_dealer

R = TypeVar("R")


class NoAnswer(HelexaError):
    """Nobody answers at the endpoint within the time."""


class RequestRefused(HelexaError):
    """The neuron refuses, or could not do it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class NeuronClient:
    """One connection; use as a context manager."""

    def __init__(
        self, endpoint: Endpoint | SocketFile, timeout_s: float = 5.0, credentials: Credentials | None = None
    ) -> None:
        """`timeout_s`: how long the neuron may be silent. Without `credentials` in plain text."""
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._incarnation = new_incarnation()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = bus_dealer(self._context, endpoint.zmq, self._incarnation, credentials)
        self._credentials = credentials
        self._handshakes = Handshakes(self._socket)
        self._is_greeted = False

    def __enter__(self) -> "NeuronClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._handshakes.close()
        self._socket.close()
        self._context.term()

    def ask(
        self,
        question: Callable[[str], msgspec.Struct],
        reply: type[R],
        *,
        progressed: Callable[[Progress], None] = lambda _: None,
    ) -> R:
        """Send `question(request id)` and return its reply, however long that takes while the neuron is alive.

        Raises NoAnswer, RequestRefused, ProtocolError.
        """
        request = new_request_id()
        deadline = time.monotonic() + self._timeout_s
        if not self._is_greeted:
            hello = Hello(version=PROTOCOL_VERSION, incarnation=self._incarnation, role="admin", name="neuronctl")
            self._send(hello, deadline)
            while not isinstance(self._receive(deadline, request), NodeState):
                pass
            self._is_greeted = True
        self._send(question(request), deadline)
        deadline, is_probed = time.monotonic() + self._timeout_s, False
        while True:
            if not is_probed and not self._poll(deadline - self._timeout_s / 2, zmq.POLLIN):
                is_probed = True
                self._probe()
            message = self._receive(deadline, request)
            deadline, is_probed = time.monotonic() + self._timeout_s, False
            if getattr(message, "request", None) == request:
                if isinstance(message, reply):
                    return message
                if isinstance(message, Progress):
                    progressed(message)

    def _probe(self) -> None:
        # A drain says nothing until it is done, and the state is pushed to gateways only: any reply is a sign of life.
        if self._socket.poll(0, zmq.POLLOUT):
            self._socket.send(encode(Version(request=new_request_id())), zmq.DONTWAIT)

    def _poll(self, deadline: float, event: int) -> bool:
        return bool(self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000)), event))

    def _send(self, message: msgspec.Struct, deadline: float) -> None:
        # With ZMQ_IMMEDIATE a send waits for a connection, so this is where nobody's being there shows.
        if not self._poll(deadline, zmq.POLLOUT):
            raise self._silence()
        self._socket.send(encode(message), zmq.DONTWAIT)

    def _receive(self, deadline: float, request: str) -> FromNeuron:
        if not self._poll(deadline, zmq.POLLIN):
            raise self._silence()
        message = decode_from_neuron(self._socket.recv())
        if isinstance(message, Refused) and message.request in (None, request):
            raise RequestRefused(message.code, message.message)
        if isinstance(message, HelloWanted):
            self._is_greeted = False
            raise RequestRefused(Code.NEURON_LOST, "the neuron was restarted meanwhile; try again")
        return message

    def _silence(self) -> NoAnswer:
        trouble = self._handshakes.trouble()
        if trouble is not None:
            own = self._credentials
            key = "KEY" if own is None else own.pair.public.hex()
            text = explain(trouble, has_key=own is not None, own_key=key).replace(
                "authorize gateway", "authorize admin"
            )
            return NoAnswer(f"the neuron at {self._endpoint} cannot be spoken to: {text}")
        if isinstance(self._endpoint, SocketFile):
            return NoAnswer(
                f"no neuron answers at {self._endpoint} within {self._timeout_s:g} s; is it running "
                "(systemctl status neuron), and are you root or of its group?"
            )
        return NoAnswer(
            f"no neuron answers at {self._endpoint} within {self._timeout_s:g} s; is it running "
            "(systemctl status neuron), and does it know this key (--key; none: plain text)?"
        )


def plain(message: Any) -> Any:
    """Return a message as plain data for JSON, defaults included."""
    if isinstance(message, msgspec.Struct):
        return {f: plain(getattr(message, f)) for f in message.__struct_fields__}
    if isinstance(message, list | tuple):
        return [plain(m) for m in message]
    if isinstance(message, dict):
        return {k: plain(v) for k, v in message.items()}
    return message
