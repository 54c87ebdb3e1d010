"""The application behind `gateway.metrics_listen`."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import falcon
import falcon.asgi
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from common import gauges
from cortex.fleet.view import LinkState, Node
from cortex.metrics import archive


class _Requests(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Return what all gateway processes have counted."""
        return archive.read(self._folder)


class _Nodes(Collector):
    def __init__(self, nodes: list[gauges.Seen]) -> None:
        self._nodes = nodes

    def collect(self) -> Iterable[Metric]:
        """Return what the neurons have told."""
        return gauges.collect(self._nodes)


class Metrics:
    """GET /metrics."""

    def __init__(
        self, folder: Path, view: Callable[[], list[Node]], may_read: Callable[[falcon.asgi.Request], bool]
    ) -> None:
        """`folder`: where the gateway's processes count. `view`: the neurons as this process sees them."""
        self._folder = folder
        self._may_read = may_read
        self._view = view

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer in the format that is asked for. Files are read and text is made beside the event loop."""
        if not self._may_read(req):
            raise falcon.HTTPUnauthorized(
                description="a key of the role metrics is required", challenges=['Bearer realm="metrics"']
            )
        registry = CollectorRegistry()
        registry.register(_Requests(self._folder))
        nodes = [gauges.Seen(n.name, n.link is LinkState.UP, n.snapshot()) for n in self._view()]
        registry.register(_Nodes(nodes))
        encode, content_type = choose_encoder(req.get_header("accept") or "")
        resp.data = await asyncio.to_thread(encode, registry)
        resp.content_type = content_type


def create_metrics_app(
    folder: Path,
    view: Callable[[], list[Node]],
    may_read: Callable[[falcon.asgi.Request], bool] = lambda request: True,
) -> falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]:
    """Return the ASGI application; it knows nothing but /metrics. `may_read`: says who may see them."""
    app = falcon.asgi.App()
    app.add_route("/metrics", Metrics(folder, view, may_read))
    return app
