"""One gateway process: gunicorn's ASGI worker with our start and our stop."""

import asyncio
import functools
import logging
import os
import signal
import time
from typing import Any

import falcon.asgi
import msgspec
from gunicorn.workers.gasgi import ASGIWorker

from common import log as logs
from common.catalogue import Catalogue
from common.errors import Code, RequestError
from common.log import fields
from cortex.access.access import Access
from cortex.access.meter import Meter
from cortex.access.usage import UsageBook, Used
from cortex.api.exchange import Exchange
from cortex.api.front import Front
from cortex.api.peers import Peers
from cortex.api.protocol import GatewayProtocol
from cortex.api.status import Lifecycle
from cortex.app import create_app
from cortex.configuration import Configuration
from cortex.dashboard.observer import observe
from cortex.fleet.fleet import BusFleet
from cortex.readiness import describe

log = logging.getLogger("cortex")

TICK_S = 0.5
"""Between two signs of life to the arbiter, and two looks at its bulletin."""
LAST_WORDS_S = 2.0
"""After the drain, for the error events of what still ran to go out."""


class GatewayWorker(ASGIWorker):  # type: ignore[misc]
    """One gateway process."""

    SIGNALS = [s for s in ASGIWorker.SIGNALS if s != signal.SIGHUP]  # noqa: RUF012 - gunicorn's
    """Set to their defaults first. A reload may reach a whole group, and in it a process that has just begun."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._configuration: Configuration = self.app.configuration
        self.max_body = self._configuration.settings.gateway.max_body_mb * 2**20
        self.connections: set[GatewayProtocol] = set()
        self.limits = limits = self._configuration.settings.limits
        proxies = ["127.0.0.1", "::1"] if limits.trusted_proxies is None else limits.trusted_proxies
        self.peers = Peers(limits.connections, limits.connections_per_address, proxies)
        self._lifecycle = Lifecycle()
        settings = self._configuration.settings.access
        self._access = Access(
            self._configuration.admin_keys,
            anonymous=settings.anonymous,
            anonymous_limits=settings.anonymous_limits,
            ring=lambda: self._configuration.api_keys.ring,
        )
        self.place: int = self.app.seats.next_place
        """Among the processes that run."""
        self._meter = Meter(self.app.seats.rows, self.place)
        self._usage = UsageBook(self.app.usage_file)
        self._writing: asyncio.Future[None] | None = None
        self._notice = 0
        """Number of the arbiter's last notice that was read."""

    def load_wsgi(self) -> None:
        """Leave the application to _serve(): its links need the running loop."""

    def init_process(self) -> None:
        """Tell this process apart in the log, then run."""
        settings = self._configuration.settings.log
        logs.setup(f"cortex.{self.age}", format=settings.format, level=settings.level)
        super().init_process()

    def init_signals(self) -> None:
        """Stop gracefully also on SIGINT, which a terminal sends to everybody; SIGQUIT is for hurry."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._stop = asyncio.Event()
        self.loop.add_signal_handler(signal.SIGTERM, self.handle_exit_signal)
        self.loop.add_signal_handler(signal.SIGINT, self.handle_exit_signal)

    def handle_exit_signal(self) -> None:
        """Begin to stop."""
        self.alive = False
        self._stop.set()

    def handle_quit_signal(self) -> None:
        """Begin to stop, or go on with it, without waiting for running requests."""
        self._quick_shutdown = True
        self.handle_exit_signal()

    async def _serve(self) -> None:
        configuration = self._configuration
        fleet = BusFleet(
            configuration.settings,
            configuration.catalogue,
            created=configuration.created,
            keys=configuration.known_neurons.keys,
        )
        try:
            await fleet.open()
            apps = self._make_apps(fleet)
            self.asgi = apps[0]
            certificate = configuration.certificate
            for listener, app in zip(self.sockets, apps, strict=True):
                protocol = functools.partial(GatewayProtocol, self, app)
                secured: dict[str, Any] = {}
                if certificate is not None and app is apps[0]:
                    secured = {"ssl": certificate.context, "ssl_handshake_timeout": self.limits.header_s}
                server = await self.loop.create_server(
                    protocol, sock=listener.sock, backlog=self.cfg.backlog, **secured
                )
                self.servers.append(server)
            while self.alive and self.ppid == os.getppid():
                self.notify()
                self._read_bulletin(fleet)
                if configuration.api_keys.refresh():
                    apps[0].end_revoked()
                if configuration.known_neurons.refresh():
                    fleet.adopt_keys(configuration.known_neurons.keys)
                if certificate is not None:
                    certificate.refresh()
                self._keep_books(apps[0])
                self.app.activity.report(fleet.jobs.tokens, sum(e.call is not None for e in self.asgi.active))
                self.app.readiness.report(describe(fleet.view()))
                try:
                    await asyncio.wait_for(self._stop.wait(), TICK_S)
                except TimeoutError:
                    continue
            await self._drain(self.asgi, fleet)
        finally:
            await fleet.close()
            self._usage.write()

    def _make_apps(self, fleet: BusFleet) -> tuple[Front, *tuple[Any, ...]]:
        """Return the application of the API, and that of the metrics if they have an address."""
        configuration, folder, loop = self._configuration, self.app.metrics_folder, self.loop
        wire = functools.partial(
            create_app,
            configuration.settings,
            fleet,
            self._access,
            self._lifecycle,
            activity=self.app.activity,
            capture=configuration.capture,
        )
        if folder is None:
            return (wire(self._note, self._meter.admit),)
        # Not before: what it imports looks once, when it is imported, whether processes are to count together.
        from cortex.metrics.page import create_metrics_app
        from cortex.metrics.requests import RequestMetrics

        metrics = RequestMetrics()
        page = create_metrics_app(folder, fleet.view, self._may_read_metrics)

        def count(exchange: Exchange) -> None:
            metrics.observe(exchange, loop.time())
            self._note(exchange)

        return wire(count, self._meter.admit), page

    def _note(self, exchange: Exchange) -> None:
        """Gather what a request has used, and tell the other processes of it."""
        observe(self.app.activity, exchange, self.loop.time())
        call = exchange.call
        if call is not None:
            used = Used(1, call.record.prompt_tokens, call.record.cached_tokens, call.tokens)
            self._usage.add(exchange.identity.label, exchange.known_model or "", used, time.time())

    def _keep_books(self, front: Front) -> None:
        """Count what running requests have had so far, and have usage written beside the loop."""
        for exchange in list(front.active):
            exchange.charge()
        if self._usage and (self._writing is None or self._writing.done()):
            self._writing = self.loop.run_in_executor(None, self._usage.write)

    def _may_read_metrics(self, request: falcon.asgi.Request) -> bool:
        needs_key = self._configuration.settings.access.metrics_key
        return not needs_key or self._access.may_read_metrics(list(request.scope["headers"]))

    def _read_bulletin(self, fleet: BusFleet) -> None:
        """Take over the models file as the arbiter has read it anew."""
        news = self.app.bulletin.read(self._notice)
        if news is not None:
            self._notice, notice = news
            fleet.adopt(msgspec.msgpack.decode(notice, type=Catalogue))

    async def _drain(self, front: Front, fleet: BusFleet) -> None:
        """Stop accepting; wait for running requests up to drain_s; end the rest with an error of their dialect."""
        self.alive = False  # also when the arbiter is gone
        self._lifecycle.is_stopping = True
        for server in self.servers:
            server.close()
        drain_s = self._configuration.settings.gateway.drain_s
        if front.active:
            log.info("waiting for running requests", extra=fields(requests=len(front.active), drain_s=drain_s))
        await self._wait_until_idle(front, drain_s, is_hurried=True)
        if front.active:
            log.warning("ending requests that still run", extra=fields(requests=len(front.active)))
            fleet.jobs.fail_all(RequestError(Code.SHUTTING_DOWN, "this gateway is being stopped", retriable=True))
            await self._wait_until_idle(front, LAST_WORDS_S, is_hurried=False)
        ends_at = self.loop.time() + LAST_WORDS_S
        while self.connections and self.loop.time() < ends_at:
            self._close_idle()  # what has been written is still sent
            await asyncio.sleep(0.02)

    async def _wait_until_idle(self, front: Front, limit_s: float, *, is_hurried: bool) -> None:
        """Return when no request runs, after `limit_s`, or (`is_hurried`) at a signal to hurry."""
        ends_at = self.loop.time() + limit_s
        while front.active and self.loop.time() < ends_at and not (is_hurried and self._quick_shutdown):
            self.notify()
            self._close_idle()
            await asyncio.sleep(0.02)

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_idle()
