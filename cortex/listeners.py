"""The addresses that the gateway serves, bound before any process is forked."""

import contextlib
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
    if kept is None or _is_at(kept, endpoint):
        return kept
    manager.drop(KEPT)
    # The manager's copy may live a moment longer; its address must be free now, for the new one may overlap it.
    with contextlib.suppress(OSError):
        kept.shutdown(socket.SHUT_RDWR)
    kept.close()
    return None


def _is_at(listener: socket.socket, endpoint: Endpoint) -> bool:
    try:
        addresses = socket.getaddrinfo(endpoint.host.strip("[]"), endpoint.port, listener.family, socket.SOCK_STREAM)
    except OSError:
        return False  # binding it anew will say what is wrong with it
    return listener.getsockname()[:2] in [address[:2] for *_, address in addresses]


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
