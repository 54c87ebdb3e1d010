"""`cortex serve`: gunicorn's arbiter and ASGI worker, with our configuration, our stop and our log."""

import logging
import math
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.sock import TCP6Socket, TCPSocket

from common import log as logs
from common.errors import ConfigError
from common.log import fields
from common.sdnotify import ServiceManager
from cortex.access import usage
from cortex.access.seats import Seats
from cortex.bulletin import Bulletin
from cortex.configuration import Configuration
from cortex.dashboard.activity import Activity
from cortex.listeners import open_listeners
from cortex.readiness import Readiness
from cortex.worker import LAST_WORDS_S, GatewayWorker

if TYPE_CHECKING:
    from cortex.metrics.archive import Archive

log = logging.getLogger("cortex")

WATCHDOG_S = 30.0
"""A gateway process whose loop stands still for longer than a stop may take, and this, is replaced."""
READY_TURN_S = 0.1
"""Between two looks whether a gateway process serves, until one does; whoever started this is waiting for it."""
STOP_MARGIN_S = 10.0
"""For processes to end after their last words."""


def serve(config_file: Path) -> int:
    """Run the gateway until it is stopped; return the exit status.

    Messages about what keeps it from starting go to stderr.
    """
    manager = ServiceManager()  # first of all: gunicorn would say READY before any process serves
    try:
        configuration = Configuration(config_file)
        logs.setup("cortex", format=configuration.settings.log.format, level=configuration.settings.log.level)
        listeners = open_listeners(configuration, manager)
    except ConfigError as error:
        print(f"cortex: {error}", file=sys.stderr)
        return 1
    pid = os.getpid()
    folder = None if configuration.settings.metrics_listen is None else _make_metrics_folder()
    try:
        GatewayArbiter(_Application(configuration, folder), listeners, manager).run()
    except SystemExit as stop:
        if os.getpid() != pid:
            raise  # a gateway process that ends; its parent's caller is not its own
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        if folder is not None and os.getpid() == pid:
            shutil.rmtree(folder)
    return 0


def _make_metrics_folder() -> Path:
    """Return an empty folder where all processes count, made known to the library that counts."""
    folder = Path(tempfile.mkdtemp(prefix="cortex-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return folder


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's settings, from ours alone: no command line, no files, no environment of gunicorn's."""

    def __init__(self, configuration: Configuration, metrics_folder: Path | None) -> None:
        self.configuration = configuration
        self.metrics_folder = metrics_folder
        """Where all processes count; None: nothing is counted."""
        self.bulletin = Bulletin()
        self.activity = Activity()
        self.readiness = Readiness()
        gateway = configuration.settings.gateway
        state = gateway.state_folder
        self.seats = Seats(gateway.workers, None if state is None else state / "limits.map")
        self.usage_file = None if state is None else state / usage.NAME
        super().__init__()

    def load_config(self) -> None:
        """Fill gunicorn's settings."""
        settings = self.configuration.settings
        gateway, limits, endpoint = settings.gateway, settings.limits, settings.listen
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
            "limit_request_line": limits.request_line_bytes,
            "limit_request_fields": limits.header_fields,
            "limit_request_field_size": limits.header_field_bytes,
        }
        for key, value in values.items():
            self.cfg.set(key, value)

    def load(self) -> None:
        """Return nothing: each gateway process makes its own application once its loop runs."""


class GatewayArbiter(Arbiter):  # type: ignore[misc]
    """Keeps the gateway processes alive. Stops gracefully on SIGTERM and SIGINT, at once on a second SIGINT."""

    def __init__(self, app: _Application, listeners: list[socket.socket], manager: ServiceManager) -> None:
        """`listeners`: bound, the API's first; they belong to the arbiter from here."""
        super().__init__(app)
        os.environ.pop("GUNICORN_PID", None)  # set by gunicorn's own re-exec, which is switched off here
        self._configuration = app.configuration
        self._manager = manager
        self._is_ready = False
        self._fleet = ""
        """What a gateway process reported last."""
        self.LISTENERS = [self._adopt(listener) for listener in listeners]
        self._archive = self._open_archive(app.metrics_folder)

    def _adopt(self, listener: socket.socket) -> TCPSocket:
        kind = TCP6Socket if listener.family == socket.AF_INET6 else TCPSocket
        return kind(listener.getsockname(), self.cfg, self.log, fd=listener.detach())

    @staticmethod
    def _open_archive(folder: Path | None) -> "Archive | None":
        if folder is None:
            return None
        from cortex.metrics.archive import Archive  # not before the variable is set that it reads when imported

        return Archive(folder)

    def spawn_worker(self) -> Any:
        """Begin a process, in a place of its own among the rows that count seats."""
        self.app.seats.choose(worker.place for worker in self.WORKERS.values())
        return super().spawn_worker()

    def reap_workers(self) -> None:
        """Take leave of processes that have ended; what they counted is kept, the seats they had are free."""
        before = dict(self.WORKERS)
        super().reap_workers()
        for pid, worker in before.items():
            if pid not in self.WORKERS:
                self.app.seats.rows.vacate(worker.place)
                if self._archive is not None:
                    self._archive.bury(pid)

    def manage_workers(self) -> None:
        """Have as many processes as are wanted. Called at every turn of the loop."""
        if self._archive is not None:
            self._archive.fold()
        super().manage_workers()

    def start(self) -> None:
        """Say what is served, and begin."""
        super().start()
        settings = self._configuration.settings
        log.info(
            "listening on %s",
            settings.listen,
            extra=fields(
                processes=settings.gateway.workers, neurons=len(settings.neurons), metrics=settings.metrics_listen
            ),
        )

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
