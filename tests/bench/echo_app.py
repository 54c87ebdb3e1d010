"""The floor of the stack: an ASGI application under gunicorn that streams the same chunks and does nothing else.

Its tokens come from a timer of its own, `PACE` a second for each stream; one task is woken for each, as ASGI has it.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from tests.bench.sse_stub import ROLE, event


class Ticker:
    """One future for all streams, done at each tick."""

    def __init__(self, pace: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.next: asyncio.Future[bytes] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(1 / pace))

    async def _run(self, period_s: float) -> None:
        due = self._loop.time()
        while True:
            due = max(due + period_s, self._loop.time() - 0.1)
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            tick, self.next = self.next, self._loop.create_future()
            tick.set_result(event())


tickers: list[Ticker] = []


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Stream until the client is gone."""
    if scope["type"] != "http":
        return
    if not tickers:
        tickers.append(Ticker(float(os.environ["PACE"])))
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: " + ROLE + b"\n\n", "more_body": True})
    while True:
        data = await asyncio.shield(tickers[0].next)
        await send({"type": "http.response.body", "body": data, "more_body": True})
