"""The endpoints that generate: read a request in its dialect, run its jobs, write the reply as it comes or whole."""

import time

import falcon
import falcon.asgi

from common.errors import RequestError
from common.ids import new_job_id
from common.messages import Chat
from cortex.api.drift import DriftWatch
from cortex.api.front import exchange_of, too_large
from cortex.api.relay import Relay, outlet_of
from cortex.dialects import bounds
from cortex.dialects.canonical import fill, make_jobs, rank
from cortex.dialects.contract import Dialect, Heading
from cortex.fleet.contract import Events, Fleet
from cortex.settings import GatewaySettings

BYTES_PER_TOKEN = 4
"""Of a request's body, for what its prompt may come to until it has been counted."""


class Generate:
    """One endpoint in one dialect."""

    def __init__(self, dialect: Dialect, fleet: Fleet, settings: GatewaySettings, most: bounds.Bounds) -> None:
        self._dialect = dialect
        self._bounds = most
        self._fleet = fleet
        self._max_body = settings.max_body_mb * 2**20
        self._budget_ms = int(settings.budget_s * 1000)
        self._first_byte_s = settings.first_byte_s
        self._ping_s = settings.ping_s
        self._drift = DriftWatch()

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer. Until the first event is there, every failure is a real HTTP status."""
        exchange = exchange_of(req)
        exchange.dialect = self._dialect.name
        content = await read_body(req, self._max_body)
        request = self._dialect.read(content)
        generation = request.generation
        bounds.check(generation, self._bounds)
        exchange.model = generation.model
        model, alias = self._fleet.resolve(generation.model)
        exchange.model = exchange.known_model = model
        exchange.identity.require(model)
        for given in generation.inputs:
            if isinstance(given, Chat):
                self._drift.look(given, principal=exchange.identity.name, model=model, request_id=exchange.request_id)
        generation = fill(generation, alias)
        jobs = make_jobs(
            generation,
            model=model,
            request_id=exchange.request_id,
            principal=exchange.identity.name,
            priority=rank(exchange.identity.priority, alias),
            budget_ms=self._budget_ms,
            new_id=new_job_id,
        )
        if exchange.ticket is not None:
            answer = (generation.max_tokens or 0) * len(jobs)
            exchange.ticket.reserve(len(content) // BYTES_PER_TOKEN + answer)
        call = exchange.call = self._fleet.submit(jobs)  # whatever happens, the exchange's end closes it
        heading = Heading(id=new_job_id(), model=model, created=int(time.time()))
        if generation.is_stream:
            # Within this time the jobs have begun, have failed with a status of their own, or are known to wait.
            first: Events | RequestError
            try:
                first = await call.next(self._first_byte_s)
            except RequestError as error:
                if error.code not in generation.told_in_stream:
                    raise
                first = error
            resp.content_type = "text/event-stream; charset=utf-8"
            resp.set_header("cache-control", "no-cache")
            resp.set_header("x-accel-buffering", "no")
            stream = exchange.reply = request.stream(heading)
            relay = Relay(exchange, call, stream, self._ping_s)
            resp.stream = relay.pieces(first, outlet_of(req.scope))
        else:
            body = exchange.reply = request.body(heading)
            while not body.is_complete:
                body.feed(await call.next(None))
            resp.content_type = falcon.MEDIA_JSON
            resp.data = body.render()


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
