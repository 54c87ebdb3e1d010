"""Prometheus' view of this neuron, served from a thread of its own: a slow scraper must not hold up the bus."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from common import gauges
from common.endpoint import Endpoint
from common.errors import ConfigError
from common.messages import NodeState


class _State(Collector):
    def __init__(self, name: str, state: Callable[[], NodeState | None]) -> None:
        self._name = name
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Return what was last pushed to gateways; a state is never changed once it is made."""
        return gauges.collect([gauges.Seen(self._name, True, self._state())])


@contextmanager
def serving(endpoint: Endpoint | None, name: str, state: Callable[[], NodeState | None]) -> Iterator[None]:
    """Serve /metrics meanwhile; without an endpoint, do nothing. Raises ConfigError if the address cannot be bound."""
    if endpoint is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(_State(name, state))
    try:
        server, thread = start_http_server(endpoint.port, endpoint.host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"metrics_listen: {endpoint}: {error.strerror or error}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
