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
from cortex.settings import LimitSettings

LINGER_S = 1.0
"""How long the rest of a refused body is read and dropped; closing at once would reset the connection."""

CHUNKS, CHUNK_BYTES = 4096, 16
"""A body in more chunks than that must have so many bytes in each on average: every one costs a turn of the parser."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# The search for the C parser leaves its result on the class that asks, but it is read from gunicorn's own: asked by a
# subclass first, the slow parser would be taken without a word.
ASGIProtocol._check_h1c_protocol_available()


class GatewayProtocol(ASGIProtocol):  # type: ignore[misc]
    """Adds what gunicorn leaves open.

    Time limits for header, body, silence between requests, and a client that takes nothing; bounds on connections and
    unread bodies; 100-continue; lingering close; errors as JSON. There are no WebSockets.
    """

    def __init__(self, worker: Any, app: Any) -> None:
        """`app`: the ASGI application of this connection's address."""
        super().__init__(worker)
        self.app = app
        self._max_body: int = worker.max_body
        self._closed: bool = False
        self._body_bytes = 0
        self._body_chunks = 0
        self._body_pieces: list[bytes] = []
        """Of what has come just now; handed on as one, since each would cost the application a turn as well."""
        self._limits: LimitSettings = worker.limits
        self._address = ""
        self._idle_timer: asyncio.TimerHandle | None = None
        """For the next header to be complete, or its first byte. gunicorn cancels its own before it can fire."""
        self._is_in_header = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._is_lingering = False
        self.on_room: Callable[[], None] | None = None
        """Of the reply that is written directly; see cortex.api.relay."""
        self._is_turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request, or turn away who has too many connections."""
        self._address, *_ = transport.get_extra_info("peername") or ["local"]
        refusal = self.worker.peers.enter(self._address)
        if refusal is not None:
            self._is_turned_away = self._closed = True
            self.transport = transport
            self._send_error_response(429, refusal)
            transport.close()
            return
        self.worker.connections.add(self)
        self._await_header()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request that may be running."""
        if self._is_turned_away:
            return
        self.worker.peers.leave(self._address)
        self.worker.connections.discard(self)
        self._cancel_idle_timer()
        self._cancel_body_timer()
        self._cancel_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to count how long the client takes nothing."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.worker.loop.call_later(self._limits.write_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it has taken what was waiting, and go on with the reply that waited."""
        self._cancel_stall_timer()
        super().resume_writing()
        if self.on_room is not None:
            self.on_room()

    # What it is to a streamed reply: a relay.Outlet.

    @property
    def is_full(self) -> bool:
        """Whether the client is behind."""
        return bool(self._flow_control.write_paused)

    def write(self, data: bytes) -> None:
        """Send a piece of the response that has begun; to a client that is gone nothing is sent."""
        if not self._closed and self._current_request is not None:
            self._send_body(data, chunked=self._current_request.version >= (1, 1))

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
        if self._is_lingering or self._is_turned_away:
            return
        if self._idle_timer is not None and not self._is_in_header:
            self._await_header()
        super().data_received(data)
        self._hand_on_body()

    def _is_websocket_upgrade(self, request: Any) -> bool:
        """Never: a request to upgrade is answered as if it had not asked, as HTTP allows."""
        return False

    def _await_header(self) -> None:
        self._cancel_idle_timer()
        self._is_in_header = True
        self._idle_timer = self.worker.loop.call_later(self._limits.header_s, self._give_up, "header")

    def _on_headers_complete(self) -> Any:
        self._cancel_idle_timer()
        self._body_bytes = self._body_chunks = 0
        self._cancel_body_timer()
        self._body_timer = self.worker.loop.call_later(self._limits.body_s, self._give_up, "body")
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
            self._body_pieces.append(chunk)
            self._body_chunks += 1
            if self._body_chunks > CHUNKS and self._body_bytes < self._body_chunks * CHUNK_BYTES:
                raise ValueError(f"the body comes in chunks of less than {CHUNK_BYTES} bytes")

    def _hand_on_body(self) -> None:
        if self._body_pieces:
            super()._on_body(b"".join(self._body_pieces))
            self._body_pieces.clear()

    def _on_message_complete(self) -> None:
        self._cancel_body_timer()
        self._hand_on_body()
        super()._on_message_complete()

    def _give_up(self, what: str) -> None:
        """End a connection whose request does not become complete; of one that is silent there is nothing to say."""
        if what == "body" or self._is_in_header:
            limit_s = self._limits.body_s if what == "body" else self._limits.header_s
            self._send_error_response(408, f"the {what} of the request was not complete after {limit_s:g} s")
        self._close_transport()

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
        self._is_in_header = False
        self._idle_timer = self.worker.loop.call_later(self._limits.idle_s, self.close_idle)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _cancel_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _close_transport(self) -> None:
        self._cancel_body_timer()
        receiver = self._body_receiver
        is_refused = receiver is not None and not receiver._complete and not receiver._closed
        if not is_refused or self._closed or self.transport is None or self.transport.is_closing():
            super()._close_transport()
            return
        self._is_lingering = self._closed = True
        if self.transport.can_write_eof():  # TLS has no half-closed connections
            self.transport.write_eof()
        self.worker.loop.call_later(LINGER_S, self.transport.close)

    def _send_error_response(self, status: int, message: str) -> None:
        """Answer what is no HTTP request, in the envelope of all other errors."""
        code = Code.RATE_LIMIT_EXCEEDED if status == 429 else Code.INVALID_VALUE
        error = RequestError(code, message) if status < 500 else errors.internal_error()
        body = errors.to_openai(error)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
        )
        self._safe_write(head.encode() + body)
