"""Listens in on requests: what came in, what the model was given and wrote, what went out.

Sits between Front and Falcon for the bodies, and between the resources and the fleet for what the model wrote; a
context variable tells which request a call belongs to.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol, cast

from msgspec import structs

from common.errors import RequestError
from common.ids import new_job_id
from common.messages import Chat, EndedItem, Job, RenderedItem, Sampling, StartedItem
from cortex.api.exchange import SCOPE_KEY, Exchange
from cortex.api.relay import EXTENSION, Outlet
from cortex.capture.store import Captured, CapturedJob, Store
from cortex.fleet.contract import Call, Events, Fleet, Told

log = logging.getLogger(__name__)

LONGEST = 4 * 2**20
"""Bytes of a body that are kept."""
RENDER_S = 10.0

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


class Heard:
    """One request so far."""

    def __init__(self) -> None:
        self.request = bytearray()
        self.reply = bytearray()
        self.is_cut = False
        self.jobs: list[Job] = []
        self.answers: list[CapturedJob] = []

    def keep(self, body: bytearray, data: bytes) -> None:
        """Add to a body as long as there is room."""
        self.is_cut |= len(body) + len(data) > LONGEST
        body += data[: max(0, LONGEST - len(body))]

    def take(self, events: Events, first: int) -> None:
        """Take what a call hands out; its jobs' answers begin at number `first`."""
        for index, event in events:
            answer = self.answers[first + index]
            if isinstance(event, StartedItem):
                answer.prompt_tokens, answer.cached_tokens = event.prompt_tokens, event.cached_tokens
            elif isinstance(event, str):
                answer.raw += event
            elif isinstance(event, Told):
                answer.raw += event.text
            elif isinstance(event, EndedItem):
                answer.tokens, answer.reason = event.total, event.reason


_heard: ContextVar[Heard | None] = ContextVar("heard", default=None)


class _Outlet:
    """A connection that is written to directly."""

    def __init__(self, outlet: Outlet, heard: Heard) -> None:
        self._outlet = outlet
        self._heard = heard

    @property
    def on_room(self) -> Callable[[], None] | None:
        return self._outlet.on_room

    @on_room.setter
    def on_room(self, wanted: Callable[[], None] | None) -> None:
        self._outlet.on_room = wanted

    @property
    def is_full(self) -> bool:
        return self._outlet.is_full

    def write(self, data: bytes) -> None:
        self._heard.keep(self._heard.reply, data)
        self._outlet.write(data)


class _Call:
    """A call whose events are heard; all else is the call's own."""

    def __init__(self, call: Call, heard: Heard, first: int) -> None:
        self._call = call
        self._heard = heard
        self._first = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def next(self, timeout_s: float | None) -> Events:
        events = await self._call.next(timeout_s)
        self._heard.take(events, self._first)
        return events

    def take(self) -> Events:
        events = self._call.take()
        self._heard.take(events, self._first)
        return events


class _Fleet:
    """The fleet as the resources see it; all but submit is the fleet's own."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fleet, name)

    def submit(self, jobs: list[Job]) -> Call:
        call, heard = self._fleet.submit(jobs), _heard.get()
        if heard is None:
            return call
        first = len(heard.answers)
        heard.jobs += jobs
        heard.answers += [CapturedJob() for _ in jobs]
        return cast(Call, _Call(call, heard, first))


def tapped(fleet: Fleet) -> Fleet:
    """Return the fleet, whose calls are heard while a Tap serves a request."""
    return cast(Fleet, _Fleet(fleet))


class Submits(Protocol):
    """The part of the fleet that prompts are rendered with."""

    def submit(self, jobs: list[Job]) -> Call:
        """Send jobs."""


class Tap:
    """Wraps the application."""

    def __init__(self, serve: Serve, fleet: Submits, store: Store) -> None:
        """`fleet`: not the tapped one; prompts are rendered with it."""
        self._serve = serve
        self._fleet = fleet
        self._store = store
        self._writes: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and keep it if it ran jobs."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._serve(scope, receive, send)
            return
        heard = Heard()

        async def hear() -> dict[str, Any]:
            message = await receive()
            heard.keep(heard.request, message.get("body", b""))
            return message

        async def tell(message: dict[str, Any]) -> None:
            heard.keep(heard.reply, message.get("body", b""))
            await send(message)

        outlet = scope.get("extensions", {}).get(EXTENSION)
        if outlet is not None:
            scope = {**scope, "extensions": {**scope["extensions"], EXTENSION: _Outlet(outlet, heard)}}
        token = _heard.set(heard)
        exchange: Exchange = scope[SCOPE_KEY]
        try:
            await self._serve(scope, hear, tell)
        except asyncio.CancelledError:
            exchange.outcome = "client gone"
            raise
        finally:
            _heard.reset(token)
            if heard.jobs:
                task = asyncio.get_running_loop().create_task(self._write(scope, exchange, heard))
                self._writes.add(task)
                task.add_done_callback(self._writes.discard)

    async def _write(self, scope: Scope, exchange: Exchange, heard: Heard) -> None:
        loop = asyncio.get_running_loop()
        captured = Captured(
            id=exchange.request_id,
            at=time.time(),
            path=exchange.path,
            query=scope.get("query_string", b"").decode("latin-1"),
            dialect=exchange.dialect or "",
            principal=exchange.identity.name,
            model=exchange.known_model,
            node=exchange.call.record.node if exchange.call is not None else None,
            status=exchange.status,
            outcome=exchange.verdict,
            seconds=round(loop.time() - exchange.began_at, 3),
            request=heard.request.decode(errors="replace"),
            reply=heard.reply.decode(errors="replace"),
            is_cut=heard.is_cut,
            jobs=heard.answers,
        )
        try:
            prompts: dict[int, str | None] = {}
            for job, answer in zip(heard.jobs, heard.answers, strict=True):
                if isinstance(job.input, Chat):
                    if id(job.input) not in prompts:
                        prompts[id(job.input)] = await self._render(job)
                    answer.prompt = prompts[id(job.input)]
            await asyncio.to_thread(self._store.add, captured)
        except Exception:
            log.exception("request %s could not be captured", exchange.request_id)

    async def _render(self, job: Job) -> str | None:
        """Return a job's prompt as its template makes it, None if nobody does."""
        question = structs.replace(
            job, id=new_job_id(), answer="prompt", group=None, sampling=Sampling(), constraint=None, logprobs=None,
            budget_ms=int(RENDER_S * 1000),
        )  # fmt: skip
        try:
            call = self._fleet.submit([question])
            try:
                async with asyncio.timeout(RENDER_S):
                    while True:
                        for _, event in await call.next(None):
                            if isinstance(event, RenderedItem):
                                return event.text
            finally:
                call.close()
        except (RequestError, TimeoutError):
            return None
