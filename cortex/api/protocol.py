"""One HTTP connection: gunicorn's protocol, with limits for what it takes unbounded."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.http.errors import ParseException

from common.errors import Code, RequestError
from common.ids import new_request_id
from cortex.api import errors
from cortex.api.relay import EXTENSION

IDLE_S = 75.0
"""For the headers of a connection's next request to be complete. gunicorn cancels its own timer before it can fire."""
LINGER_S = 1.0
"""How long the rest of a refused body is read and dropped; closing at once would reset the connection."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# The search for the C parser leaves its result on the class that asks, but it is read from gunicorn's own: asked by a
# subclass first, the slow parser would be taken without a word.
ASGIProtocol._check_h1c_protocol_available()


class GatewayProtocol(ASGIProtocol):  # type: ignore[misc]
    """Adds: a time limit for headers, a bound on unread bodies, 100-continue, lingering close, errors as JSON."""

    def __init__(self, worker: Any, app: Any) -> None:
        """`app`: the ASGI application of this connection's address."""
        super().__init__(worker)
        self.app = app
        self._max_body: int = worker.max_body
        self._closed: bool = False
        self._body_bytes = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_lingering = False
        self.on_room: Callable[[], None] | None = None
        """Of the reply that is written directly; see cortex.api.relay."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        self.worker.connections.add(self)
        self._arm_keepalive_timer()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request that may be running."""
        self.worker.connections.discard(self)
        self._cancel_idle_timer()
        super().connection_lost(exc)

    # What it is to a streamed reply: a relay.Outlet.

    @property
    def is_full(self) -> bool:
        """Whether the client is behind."""
        return bool(self._flow_control.write_paused)

    def write(self, data: bytes) -> None:
        """Send a piece of the response that has begun; to a client that is gone nothing is sent."""
        if not self._closed and self._current_request is not None:
            self._send_body(data, chunked=self._current_request.version >= (1, 1))

    def resume_writing(self) -> None:
        """Go on with the reply that waited."""
        super().resume_writing()
        if self.on_room is not None:
            self.on_room()

    def _build_http_scope(self, request: Any, sockname: Any, peername: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._build_http_scope(request, sockname, peername)
        scope.setdefault("extensions", {})[EXTENSION] = self
        return scope

    @property
    def is_idle(self) -> bool:
        """Whether no request is being served."""
        return self._current_request is None

    def close_idle(self) -> None:
        """Close the connection unless a request is being served on it."""
        if self.is_idle:
            self._close_transport()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what a refused request still sends is dropped."""
        if not self._is_lingering:
            super().data_received(data)

    def _on_headers_complete(self) -> Any:
        self._cancel_idle_timer()
        self._body_bytes = 0
        skips_body = super()._on_headers_complete()
        request = self._current_request
        headers = dict(request.headers_bytes)
        if headers.get(b"expect", b"").lower() == b"100-continue" and request.content_length <= self._max_body:
            self._safe_write(_CONTINUE)
        return skips_body

    def _on_body(self, chunk: bytes) -> None:
        # gunicorn keeps whatever comes until it is read. The application refuses a body at the first byte over the
        # limit, so nothing after the chunk that holds it is of use.
        if self._body_bytes <= self._max_body:
            self._body_bytes += len(chunk)
            super()._on_body(chunk)

    def _handle_h1c_exception(self, exc: Exception) -> bool:
        """Answer what the C parser or the header check refuses; gunicorn knows only some of their errors."""
        if super()._handle_h1c_exception(exc):
            return True
        if not isinstance(exc, ValueError | ParseException):
            return False
        self._send_error_response(400, str(exc))
        self._close_transport()
        return True

    def _arm_keepalive_timer(self) -> None:
        self._cancel_idle_timer()
        self._idle_timer = self.worker.loop.call_later(IDLE_S, self.close_idle)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _close_transport(self) -> None:
        receiver = self._body_receiver
        is_refused = receiver is not None and not receiver._complete and not receiver._closed
        if not is_refused or self._closed or self.transport is None or self.transport.is_closing():
            super()._close_transport()
            return
        self._is_lingering = self._closed = True
        self.transport.write_eof()
        self.worker.loop.call_later(LINGER_S, self.transport.close)

    def _send_error_response(self, status: int, message: str) -> None:
        """Answer what is no HTTP request, in the envelope of all other errors."""
        error = RequestError(Code.INVALID_VALUE, message) if status < 500 else errors.internal_error()
        body = errors.to_openai(error)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
        )
        self._safe_write(head.encode() + body)
