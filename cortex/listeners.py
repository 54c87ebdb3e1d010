"""The addresses that the gateway serves, bound before any process is forked."""

import errno
import socket

from common.endpoint import Endpoint
from common.errors import ConfigError
from common.sdnotify import ServiceManager
from cortex.configuration import Configuration

KEPT = "api"
"""Name under which the service manager keeps the listening socket over a restart."""


def open_listeners(configuration: Configuration, manager: ServiceManager) -> list[socket.socket]:
    """Bind the address of the API, and that of the metrics if there is one.

    That of the API is taken over from the gateway before this one, whose callers wait in its backlog. Raises
    ConfigError saying what to do; gunicorn itself would try for five seconds.
    """
    settings = configuration.settings
    kept = _take(settings.listen, manager)
    api = kept or _bind(settings.listen, f"change gateway.listen in {configuration.file}")
    listeners = [api]
    if settings.metrics_listen is not None:
        try:
            remedy = f"change gateway.metrics_listen in {configuration.file}"
            listeners.append(_bind(settings.metrics_listen, remedy))
        except ConfigError:
            api.close()
            raise
    if kept is None:
        manager.keep(KEPT, api)
    return listeners


def _take(endpoint: Endpoint, manager: ServiceManager) -> socket.socket | None:
    kept = manager.take(KEPT)
    if kept is None or kept.getsockname()[:2] == (endpoint.host.strip("[]"), endpoint.port):
        return kept
    kept.close()
    manager.drop(KEPT)
    return None


def _bind(endpoint: Endpoint, remedy: str) -> socket.socket:
    host = endpoint.host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, endpoint.port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{endpoint}: address already in use; stop the other program or {remedy}") from None
        raise ConfigError(f"{endpoint}: {(error.strerror or str(error)).lower()}; {remedy}") from None
    return listener
