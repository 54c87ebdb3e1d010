"""A synchronous client of one neuron's bus, for neuronctl and tests."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import zmq

from common.codec import decode_from_neuron, encode
from common.endpoint import Endpoint
from common.errors import Code, HelexaError
from common.ids import new_incarnation, new_request_id
from common.messages import PROTOCOL_VERSION, FromNeuron, Hello, HelloWanted, NodeState, Progress, Refused
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

    def __init__(self, endpoint: Endpoint, timeout_s: float = 5.0) -> None:
        """`timeout_s`: how long the neuron may be silent."""
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._incarnation = new_incarnation()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = bus_dealer(self._context, endpoint.zmq, self._incarnation)
        self._is_greeted = False

    def __enter__(self) -> "NeuronClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def ask(
        self,
        question: Callable[[str], msgspec.Struct],
        reply: type[R],
        *,
        progressed: Callable[[Progress], None] = lambda _: None,
        patience_s: float | None = None,
    ) -> R:
        """Send `question(request id)` and return its reply.

        `patience_s`: silence that is accepted once the neuron has been heard; None: the client's timeout.
        Raises NoAnswer, RequestRefused.
        """
        request = new_request_id()
        deadline = time.monotonic() + self._timeout_s
        if not self._is_greeted:
            hello = Hello(version=PROTOCOL_VERSION, incarnation=self._incarnation, role="admin", name="neuronctl")
            self._send(hello, deadline)
            self._await(lambda m: m if isinstance(m, NodeState) else None, deadline)
            self._is_greeted = True
        self._send(question(request), deadline)
        patience = self._timeout_s if patience_s is None else patience_s

        def pick(message: FromNeuron) -> R | None:
            if isinstance(message, Progress) and message.request == request:
                progressed(message)
            if isinstance(message, reply) and getattr(message, "request", None) == request:
                return message
            return None

        return self._await(pick, time.monotonic() + patience, renew_s=patience, request=request)

    def _send(self, message: msgspec.Struct, deadline: float) -> None:
        # With ZMQ_IMMEDIATE a send waits for a connection, so this is where nobody's being there shows.
        if not self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000)), zmq.POLLOUT):
            raise self._silence()
        self._socket.send(encode(message), zmq.DONTWAIT)

    def _await(
        self,
        pick: Callable[[FromNeuron], R | None],
        deadline: float,
        *,
        renew_s: float | None = None,
        request: str | None = None,
    ) -> R:
        while True:
            if not self._socket.poll(max(0, int((deadline - time.monotonic()) * 1000)), zmq.POLLIN):
                raise self._silence()
            message = decode_from_neuron(self._socket.recv())
            if isinstance(message, Refused) and message.request in (None, request):
                raise RequestRefused(message.code, message.message)
            if isinstance(message, HelloWanted):
                raise RequestRefused(Code.NEURON_LOST, "the neuron was restarted meanwhile; try again")
            picked = pick(message)
            if picked is not None:
                return picked
            if renew_s is not None and isinstance(message, Progress):
                deadline = time.monotonic() + renew_s

    def _silence(self) -> NoAnswer:
        return NoAnswer(
            f"no neuron answers at {self._endpoint} within {self._timeout_s:g} s; is it running? "
            "(systemctl status neuron)"
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
