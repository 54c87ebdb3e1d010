"""The endpoints that generate: read a request in its dialect, run its jobs, write the reply as it comes or whole."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import falcon
import falcon.asgi

from common.errors import RequestError
from common.ids import new_job_id
from cortex.api import errors
from cortex.api.exchange import Exchange
from cortex.api.front import exchange_of, too_large
from cortex.dialects import sse
from cortex.dialects.canonical import make_jobs
from cortex.dialects.contract import Dialect, Heading, Stream
from cortex.fleet.contract import Call, Events, Fleet
from cortex.settings import GatewaySettings

log = logging.getLogger(__name__)


class Generate:
    """One endpoint in one dialect."""

    def __init__(self, dialect: Dialect, fleet: Fleet, settings: GatewaySettings) -> None:
        self._dialect = dialect
        self._fleet = fleet
        self._max_body = settings.max_body_mb * 2**20
        self._budget_ms = int(settings.budget_s * 1000)
        self._first_byte_s = settings.first_byte_s
        self._ping_s = settings.ping_s

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer. Until the first event is there, every failure is a real HTTP status."""
        exchange = exchange_of(req)
        exchange.dialect = self._dialect.name
        request = self._dialect.read(await read_body(req, self._max_body))
        generation = request.generation
        exchange.model = generation.model
        model = exchange.model = exchange.known_model = self._fleet.resolve(generation.model)
        exchange.identity.require(model)
        jobs = make_jobs(
            generation,
            model=model,
            request_id=exchange.request_id,
            principal=exchange.identity.name,
            priority=exchange.identity.priority,
            budget_ms=self._budget_ms,
            new_id=new_job_id,
        )
        call = exchange.call = self._fleet.submit(jobs)  # whatever happens, the exchange's end closes it
        heading = Heading(id=new_job_id(), model=model, created=int(time.time()))
        if generation.is_stream:
            # Within this time the jobs have begun, have failed with a status of their own, or are known to wait.
            first = await call.next(self._first_byte_s)
            resp.content_type = "text/event-stream; charset=utf-8"
            resp.set_header("cache-control", "no-cache")
            resp.set_header("x-accel-buffering", "no")
            resp.stream = self._pump(exchange, call, request.stream(heading), first)
        else:
            body = request.body(heading)
            while not body.is_complete:
                body.feed(await call.next(None))
            resp.content_type = falcon.MEDIA_JSON
            resp.data = body.render()

    async def _pump(self, exchange: Exchange, call: Call, stream: Stream, events: Events) -> AsyncIterator[bytes]:
        """Yield what is to be sent, one piece for all events that are ready; a comment in silence."""
        loop = asyncio.get_running_loop()
        silent_since = loop.time()
        try:
            while True:
                data = stream.feed(events)
                if data:
                    silent_since = loop.time()
                elif loop.time() - silent_since >= self._ping_s or not events:
                    # Also while tokens come of which nothing can be shown yet, as inside a call.
                    reason, silent_since = call.waits_for(), loop.time()
                    data = sse.comment(reason) if reason else stream.ping()
                if data:
                    yield data
                if stream.is_complete:
                    return
                events = await call.next(self._ping_s)
        except RequestError as error:
            exchange.outcome = error.code.value
            yield self._failure(exchange, stream, error)
        except Exception:
            log.exception("request %s failed in mid-stream", exchange.request_id)
            defect = errors.internal_error()
            exchange.outcome = defect.code.value
            yield self._failure(exchange, stream, defect)

    @staticmethod
    def _failure(exchange: Exchange, stream: Stream, error: RequestError) -> bytes:
        return stream.fail(errors.envelope(error, exchange.path, exchange.request_id))


async def read_body(req: falcon.asgi.Request, limit: int) -> bytes:
    """Return the body. Raises RequestError as soon as more than `limit` bytes have come."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in req.stream:
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)
