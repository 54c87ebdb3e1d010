"""`cortex serve`: gunicorn's arbiter and ASGI worker, with our configuration, our stop and our log."""

import errno
import logging
import math
import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.sock import TCP6Socket, TCPSocket

from common import log as logs
from common.errors import ConfigError
from common.log import fields
from common.sdnotify import ServiceManager
from cortex.bulletin import Bulletin
from cortex.configuration import Configuration
from cortex.readiness import Readiness
from cortex.worker import LAST_WORDS_S, GatewayWorker

log = logging.getLogger("cortex")

WATCHDOG_S = 30.0
"""A gateway process whose loop stands still for longer than a stop may take, and this, is replaced."""
READY_TURN_S = 0.1
"""Between two looks whether a gateway process serves, until one does; whoever started this is waiting for it."""
STOP_MARGIN_S = 10.0
"""For processes to end after their last words."""
KEPT = "api"
"""Name under which the service manager keeps the listening socket over a restart."""


def serve(config_file: Path) -> int:
    """Run the gateway until it is stopped; return the exit status.

    Messages about what keeps it from starting go to stderr.
    """
    manager = ServiceManager()  # first of all: gunicorn would say READY before any process serves
    try:
        configuration = Configuration(config_file)
        logs.setup("cortex", format=configuration.settings.log.format, level=configuration.settings.log.level)
        listener = _listen(configuration, manager)
    except ConfigError as error:
        print(f"cortex: {error}", file=sys.stderr)
        return 1
    pid = os.getpid()
    try:
        GatewayArbiter(_Application(configuration), listener, manager).run()
    except SystemExit as stop:
        if os.getpid() != pid:
            raise  # a gateway process that ends; its parent's caller is not its own
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _listen(configuration: Configuration, manager: ServiceManager) -> socket.socket:
    """Bind the public address, or take it over from the gateway before this one, whose callers wait in its backlog.

    Raises ConfigError saying what to do; gunicorn itself would try for five seconds.
    """
    endpoint = configuration.settings.listen
    remedy = f"change gateway.listen in {configuration.file}"
    host = endpoint.host.strip("[]")
    kept = manager.take(KEPT)
    if kept is not None:
        if kept.getsockname()[:2] == (host, endpoint.port):
            return kept
        kept.close()
        manager.drop(KEPT)
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
    manager.keep(KEPT, listener)
    return listener


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's settings, from ours alone: no command line, no files, no environment of gunicorn's."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.bulletin = Bulletin()
        self.readiness = Readiness()
        super().__init__()

    def load_config(self) -> None:
        """Fill gunicorn's settings."""
        gateway, endpoint = self.configuration.settings.gateway, self.configuration.settings.listen
        graceful_s = math.ceil(gateway.drain_s + 2 * LAST_WORDS_S)
        values = {
            "bind": str(endpoint),
            "workers": gateway.workers,
            "worker_class": GatewayWorker,
            "logger_class": GunicornLog,
            "proc_name": "cortex",
            "asgi_loop": "uvloop",
            "asgi_lifespan": "off",
            "asgi_disconnect_grace_period": 0,  # the default leaves a job running for 3 s after its client is gone
            "graceful_timeout": graceful_s,
            "timeout": graceful_s + math.ceil(WATCHDOG_S),
            "control_socket_disable": True,
            "forwarded_allow_ips": "127.0.0.1,::1",
        }
        for key, value in values.items():
            self.cfg.set(key, value)

    def load(self) -> None:
        """Return nothing: each gateway process makes its own application once its loop runs."""


class GatewayArbiter(Arbiter):  # type: ignore[misc]
    """Keeps the gateway processes alive. Stops gracefully on SIGTERM and SIGINT, at once on a second SIGINT."""

    def __init__(self, app: _Application, listener: socket.socket, manager: ServiceManager) -> None:
        """`listener`: bound; it belongs to the arbiter from here."""
        super().__init__(app)
        os.environ.pop("GUNICORN_PID", None)  # set by gunicorn's own re-exec, which is switched off here
        self._configuration = app.configuration
        self._manager = manager
        self._is_ready = False
        self._fleet = ""
        """What a gateway process reported last."""
        address, kind = listener.getsockname(), TCP6Socket if listener.family == socket.AF_INET6 else TCPSocket
        self.LISTENERS = [kind(address, self.cfg, self.log, fd=listener.detach())]

    def start(self) -> None:
        """Say what is served, and begin."""
        super().start()
        settings = self._configuration.settings
        log.info(
            "listening on %s",
            settings.listen,
            extra=fields(processes=settings.gateway.workers, neurons=len(settings.neurons)),
        )
        if settings.gateway.metrics_listen is not None:
            log.info("gateway.metrics_listen is set, but metrics are not served by this version yet")

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """Tell the service manager how things are, once each turn of the main loop, then wait as gunicorn does."""
        self._manager.beat()
        report = self.app.readiness.latest()
        if report is not None:
            self._fleet = report
            if self._is_ready:
                self._manager.status(self._status())
            else:
                self._is_ready = True
                self._manager.ready(self._status())
        return super().wait_for_signals(timeout if self._is_ready or not self._manager.is_present else READY_TURN_S)

    def _status(self) -> str:
        return f"listening on {self._configuration.settings.listen}; {self._fleet}"

    def stop(self, graceful: bool = True) -> None:
        """Stop the gateway processes."""
        self._manager.stopping("waiting for running requests", self.cfg.graceful_timeout + STOP_MARGIN_S)
        super().stop(graceful)

    def handle_hup(self) -> None:
        """Take over a changed models file. No process is replaced, so no stream is cut; a bad file changes nothing."""
        if self._is_ready:
            self._manager.reloading()
        self._reload()
        if self._is_ready:
            self._manager.ready(self._status())

    def _reload(self) -> None:
        configuration = self._configuration
        try:
            changed = Configuration(configuration.file)
        except ConfigError as error:
            log.error("the configuration is not valid; the one in force stays: %s", error)
            return
        configuration.catalogue = changed.catalogue  # for gateway processes to come
        self.app.bulletin.publish(msgspec.msgpack.encode(changed.catalogue))
        log.info("configuration reloaded", extra=fields(models=len(changed.catalogue.models)))
        names = configuration.needs_restart(changed)
        if names:
            log.warning("only a restart applies these changes: %s", ", ".join(names))

    def handle_int(self) -> None:
        """Stop as on SIGTERM: it may be somebody's Ctrl-C, whose streams deserve an end."""
        self.handle_term()

    def handle_usr2(self) -> None:
        """Do nothing: gunicorn would start a second server from its own command line."""
        log.info("SIGUSR2 is ignored")


class GunicornLog:
    """What gunicorn logs, through our logging; its routine news are debug, our own lines tell them better."""

    access_log_enabled = False

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._log = logging.getLogger("gunicorn")

    def setup(self, cfg: Any) -> None:
        """Take new settings, of which none matter here."""
        self.cfg = cfg

    def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log at debug."""
        self._log.debug(message, *args, **kwargs)

    info = debug

    def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log a warning."""
        self._log.warning(message, *args, **kwargs)

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log an error."""
        self._log.error(message, *args, **kwargs)

    def critical(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log what ends a process."""
        self._log.critical(message, *args, **kwargs)

    def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log an error with its traceback."""
        self._log.exception(message, *args, **kwargs)

    def access(self, *_: Any) -> None:
        """Log nothing: the exchange writes the one line of a request."""

    def reopen_files(self) -> None:
        """Do nothing: the log goes to stderr."""

    def close_on_exec(self) -> None:
        """Do nothing: stderr is to be inherited."""
