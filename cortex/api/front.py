"""What every request passes before and after its resource: id, size, admin key, errors in the envelope, log, abort."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import falcon
import falcon.asgi

from common.errors import Code, RequestError
from cortex.access.access import Access, Identity
from cortex.access.meter import Ticket
from cortex.api import errors
from cortex.api.browsers import Browsers
from cortex.api.exchange import SCOPE_KEY, Exchange

log = logging.getLogger(__name__)

DRAINED_BYTES = 65536
"""A refused request's body of at most this size is read, and its connection goes on."""
DRAIN_S = 1.0

FalconApp = falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """The ASGI application: Falcon's, and around it what must happen however a request ends.

    gunicorn cancels the task of a request whose client is gone; finish() then aborts its jobs at once, whether the
    request streams, waits for its whole reply, or has not begun.
    """

    def __init__(
        self,
        app: FalconApp,
        serve: Serve,
        *,
        max_body: int,
        access: Access,
        browsers: Browsers,
        admit: Callable[[Identity], Ticket | None] = lambda identity: None,
        observe: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        """`serve`: `app`, or what is around it. `max_body`: bytes.

        `access`: decides who may ask, `admit` how much of it.
        `browsers`: decides which pages may. `observe`: is told of every request that has ended.
        """
        self._serve = serve
        self._max_body = max_body
        self._access = access
        self._browsers = browsers
        self._admit = admit
        self._observe = observe
        self.active: set[Exchange] = set()
        """Requests that have not ended."""
        app.add_error_handler(Exception, _answer_defect)
        app.add_error_handler(falcon.HTTPError, _answer_http_error)
        app.add_error_handler(RequestError, _answer_error)
        app.add_middleware(_Stamp())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or Falcon's lifespan in tests."""
        if scope["type"] != "http":
            await self._serve(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange(scope)
        self.active.add(exchange)
        exchange.answer_headers = self._browsers.answer_headers(exchange.headers)
        try:
            allowed = self._browsers.preflight(exchange.method, exchange.headers)
            if allowed is not None:
                await _send_permission(exchange, allowed, send)
                return
            refusal = self._refusal(exchange)
            if refusal is None:
                await self._serve(scope, receive, send)
            else:
                is_read = await _drain(exchange, receive)
                await _send_error(exchange, refusal, send, is_last=not is_read)
        except asyncio.CancelledError:
            exchange.outcome = "client gone"
            raise
        finally:
            self.active.discard(exchange)
            exchange.finish()
            self._observe(exchange)

    def _refusal(self, exchange: Exchange) -> RequestError | None:
        """Refuse what can be refused without reading the body."""
        if exchange.content_length > self._max_body:
            return too_large(self._max_body)
        if not exchange.is_query_text:
            return RequestError(Code.INVALID_VALUE, "the query after ? is not UTF-8 text")
        encoding = next((v for n, v in exchange.headers if n == b"content-encoding"), b"identity")
        if encoding.lower() != b"identity":
            text = "content-encoding: is not supported; send the body as it is"
            return RequestError(Code.INVALID_VALUE, text, param="content-encoding")
        try:
            self._browsers.check_host(exchange.headers)
            exchange.identity = self._access.identify(exchange.path, exchange.headers, exchange.address)
            if exchange.identity.is_anonymous:
                self._browsers.check_page(exchange.headers)
            if exchange.method == "POST":  # all that makes work is
                exchange.ticket = self._admit(exchange.identity)
        except RequestError as error:
            return error
        return None

    def end_revoked(self) -> None:
        """End the requests whose keys have been revoked since they began."""
        for exchange in list(self.active):
            if exchange.call is not None and not self._access.is_in_force(exchange.identity):
                exchange.call.fail(RequestError(Code.INVALID_API_KEY, "this key has been revoked"))


class _Stamp:
    """Falcon middleware: the request id on every response, its status in the log."""

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: object, req_succeeded: bool
    ) -> None:
        exchange: Exchange = req.scope[SCOPE_KEY]
        exchange.status = resp.status_code
        resp.set_header("x-request-id", exchange.request_id)
        for name, value in exchange.answer_headers:
            resp.append_header(name.decode(), value.decode("latin-1"))


def exchange_of(req: falcon.asgi.Request) -> Exchange:
    """Return the exchange that a Falcon request belongs to."""
    exchange: Exchange = req.scope[SCOPE_KEY]
    return exchange


def too_large(max_body: int) -> RequestError:
    """Return the error for a body over the limit of `max_body` bytes."""
    return RequestError(Code.REQUEST_TOO_LARGE, f"the body is larger than {max_body // 2**20} MiB")


def not_found(path: str) -> RequestError:
    """Return the error for a path that does not exist."""
    return RequestError(Code.NOT_FOUND, f"there is nothing at {path}")


async def _answer_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: RequestError, params: dict[str, Any]
) -> None:
    exchange = exchange_of(req)
    exchange.outcome = error.code.value
    resp.status = errors.status(error)
    resp.content_type = falcon.MEDIA_JSON
    resp.data = errors.envelope(error, exchange.path, exchange.request_id)
    wait = errors.retry_after(error)
    if wait is not None:
        resp.set_header("retry-after", wait)


async def _answer_http_error(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError, params: dict[str, Any]
) -> None:
    path = exchange_of(req).path
    status = error.status_code
    if status == 404:
        known = not_found(path)
    elif status == 405:
        known = RequestError(Code.METHOD_NOT_ALLOWED, f"{path} does not take {req.method}")
    else:
        known = RequestError(Code.INVALID_VALUE, error.description or error.title or "bad request")
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    await _answer_error(req, resp, known, params)


async def _answer_defect(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
) -> None:
    log.error("request %s failed", exchange_of(req).request_id, exc_info=error)
    await _answer_error(req, resp, errors.internal_error(), params)


async def _drain(exchange: Exchange, receive: Receive) -> bool:
    """Read the body of a refused request if it is small; say whether the connection can serve another one after it.

    One whose body has not been read is closed. A client that is not told so may have sent its next request by then.
    """
    names = {name for name, _ in exchange.headers}
    if b"transfer-encoding" in names or exchange.content_length > DRAINED_BYTES:
        return False
    if not exchange.content_length:
        return True
    try:
        async with asyncio.timeout(DRAIN_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        return False


async def _send_error(exchange: Exchange, error: RequestError, send: Send, *, is_last: bool) -> None:
    exchange.status, exchange.outcome = errors.status(error), error.code.value
    body = errors.envelope(error, exchange.path, exchange.request_id)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", exchange.request_id.encode()),
        *exchange.answer_headers,
    ]
    if is_last:
        headers.append((b"connection", b"close"))
    wait = errors.retry_after(error)
    if wait is not None:
        headers.append((b"retry-after", wait.encode()))
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_permission(exchange: Exchange, headers: list[tuple[bytes, bytes]], send: Send) -> None:
    exchange.status = 204
    headers = [(b"x-request-id", exchange.request_id.encode()), *headers]
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
