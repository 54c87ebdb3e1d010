"""Whether the gateway and the fleet serve, for probes, for people, and for the command line."""

from dataclasses import dataclass

import falcon
import falcon.asgi
import orjson

from common import __version__
from common.messages import PROTOCOL_VERSION
from cortex.fleet.contract import Fleet


@dataclass(slots=True)
class Lifecycle:
    """Where this gateway process is in its life."""

    is_stopping: bool = False


class Health:
    """GET /health: always 200; says ok, impaired or degraded, and why."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with the state of the fleet."""
        health = self._fleet.health()
        resp.data = orjson.dumps({"status": health.status, "reasons": health.reasons})


class Live:
    """GET /livez: 200 while this process answers at all."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer."""
        resp.data = b'{"status":"ok"}'


class Ready:
    """GET /readyz: 200 while new requests have a chance, else 503."""

    def __init__(self, fleet: Fleet, lifecycle: Lifecycle) -> None:
        self._fleet = fleet
        self._lifecycle = lifecycle

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer."""
        health = self._fleet.health()
        if self._lifecycle.is_stopping:
            reasons = ["this gateway is being stopped"]
        elif health.status == "degraded":
            reasons = health.reasons
        else:
            resp.data = b'{"status":"ok"}'
            return
        resp.status = falcon.HTTP_503
        resp.data = orjson.dumps({"status": "unavailable", "reasons": reasons})


class Version:
    """GET /version."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with the versions of the program and of its bus."""
        resp.data = orjson.dumps({"version": __version__, "protocol": ".".join(map(str, PROTOCOL_VERSION))})


class FleetStatus:
    """GET /fleet/status: every neuron and model, for the command line. Only with an admin key."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with links, states and models."""
        resp.data = orjson.dumps({"nodes": self._fleet.nodes(), "models": self._fleet.models()})
