"""GET /fleet/live: the state of the fleet as it changes, as server-sent events. Only with an admin key.

| event | data | when |
|---|---|---|
| `state` | health, nodes with devices and resident models, the model list | at first, and when it has changed |
| `requests` | requests that have ended, of all gateway processes | at first the last ones, then each |
| `happened` | lifecycle events of nodes, devices and models | at first the last ones, then each |
| `pulse` | tokens a second and open requests, of all gateway processes | every second |
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import falcon
import falcon.asgi
import msgspec
import orjson

from common.errors import Code, RequestError
from cortex.access.access import Identity
from cortex.api.front import exchange_of
from cortex.api.status import Lifecycle
from cortex.dashboard.activity import Activity
from cortex.fleet.contract import Fleet

TICK_S = 1.0
PARTS = 8
"""Of a tick, between which it looks whether this process stops."""
VIEWERS = 32
"""Of one gateway process; each costs it a look at the fleet a second, which they share."""
_HIDDEN = frozenset({"prefixes", "profile"})
"""Of a model: long, and of no use to people."""


class Live:
    """The stream."""

    def __init__(
        self, fleet: Fleet, activity: Activity, lifecycle: Lifecycle, is_in_force: Callable[[Identity], bool]
    ) -> None:
        """`is_in_force`: whether a key that was good when a viewer came is still good."""
        self._fleet = fleet
        self._activity = activity
        self._lifecycle = lifecycle
        self._is_in_force = is_in_force
        self._viewers = 0
        self._state = b""
        self._made_at = -TICK_S

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Stream until the client goes, or this process stops."""
        if self._viewers >= VIEWERS:
            raise RequestError(Code.BUSY, f"{VIEWERS} others look at this process already", retry_after_s=5.0)
        resp.content_type = "text/event-stream; charset=utf-8"
        resp.set_header("cache-control", "no-store")
        resp.set_header("x-accel-buffering", "no")
        resp.stream = self._stream(exchange_of(req).identity)

    async def _stream(self, identity: Identity) -> AsyncIterator[bytes]:
        self._viewers += 1
        try:
            loop = asyncio.get_running_loop()
            shown, request, event = b"", 0, 0
            totals, counted_at = self._activity.totals(), loop.time()
            while not self._lifecycle.is_stopping and self._is_in_force(identity):
                parts = []
                state = self._render(loop.time())
                if state != shown:
                    shown = state
                    parts.append(_event("state", state))
                if requests := self._activity.since(request):
                    request = requests[-1].serial
                    parts.append(_event("requests", msgspec.json.encode(requests)))
                if events := self._fleet.happened(event):
                    event = events[-1].serial
                    parts.append(_event("happened", msgspec.json.encode(events)))
                before, totals = totals, self._activity.totals()
                elapsed_s, counted_at = loop.time() - counted_at, loop.time()
                parts.append(_event("pulse", orjson.dumps(measure(before, totals, elapsed_s))))
                yield b"".join(parts)
                for _ in range(PARTS):
                    if not self._lifecycle.is_stopping:  # no stop shall have to wait for a viewer
                        await asyncio.sleep(TICK_S / PARTS)
        finally:
            self._viewers -= 1

    def _render(self, now: float) -> bytes:
        if now - self._made_at >= TICK_S / 2:
            self._made_at = now
            health = self._fleet.health()
            nodes = [describe(node) for node in self._fleet.nodes()]
            state = {
                "health": {"status": health.status, "reasons": health.reasons},
                "nodes": nodes,
                "models": self._fleet.models(),
            }
            self._state = orjson.dumps(state)
        return self._state


def describe(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node without what nobody looks at: models that it only could load, hashes, aliases."""
    state = node["state"]
    if state is None:
        return node
    models = [
        {k: v for k, v in m.items() if k not in _HIDDEN}
        for m in state.get("models", [])
        if m.get("replicas") or m.get("running") or m.get("queued")
    ]
    kept = {k: v for k, v in state.items() if k in ("version", "state", "build", "devices")}
    return {**node, "state": {**kept, "models": models}}


def measure(
    before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]], elapsed_s: float
) -> dict[str, float]:
    """Return tokens a second and open requests; a process that came or went meanwhile adds no tokens."""
    tokens = sum(max(0, total - before[pid][0]) for pid, (total, _) in after.items() if pid in before)
    rate = tokens / elapsed_s if elapsed_s > 0.1 else 0.0
    return {"tokens_per_s": round(rate, 1), "running": sum(running for _, running in after.values())}


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
