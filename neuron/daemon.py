"""The shell around the machine: carries out its instructions, and brings every outcome back as an event.

One queue, one owner: signals, timers, messages, exits and probe lines all become events, handled one after another.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import zmq

from common.catalogue import Catalogue
from common.errors import ConfigError, RequestError
from common.ids import new_incarnation
from common.keys import fingerprint
from common.log import choose
from common.messages import DiskState, LogReply
from common.sdnotify import ServiceManager
from neuron.broker.authorized import KEY_FILE
from neuron.broker.bus import Bus
from neuron.broker.gate import Gate
from neuron.discovery import Device
from neuron.exposition import serving
from neuron.fetches import Fetches
from neuron.models.hub_cache import cache_folder
from neuron.models.library import Found, Library, Lookout, Places
from neuron.process.children import Children
from neuron.process.children import Exit as ChildEnd
from neuron.settings import NeuronSettings, find_socket_file
from neuron.sources import identify, resolve_source
from neuron.state_file import find_state_file, read_state, write_state
from neuron.supervisor import events
from neuron.supervisor.instructions import (
    CancelTimer,
    Exit,
    FetchSource,
    Instruction,
    Kill,
    Nudge,
    ResolveSource,
    SaveState,
    Say,
    SendChild,
    SendPeer,
    SetTimer,
    Spawn,
    TellLog,
    WatchSources,
)
from neuron.supervisor.machine import Machine
from neuron.supervisor.report import status_line

log = logging.getLogger("neuron")
BEAT_S = 1.0
"""Between two signs of life to the service manager."""
STOP_MARGIN_S = 10.0
"""For children to end after the drain."""
SLEPT_S = 1.0
"""A shorter suspend is none: the clocks are not read at the same instant."""
_levels = logging.getLevelNamesMapping()


def asleep_s() -> float:
    """Return for how long this host has been suspended since its boot, plus a constant."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


class Daemon:
    """One neuron, from bind to exit."""

    def __init__(
        self, settings: NeuronSettings, devices: list[Device], read_catalogue: Callable[[], Catalogue], base: Path
    ) -> None:
        """`read_catalogue` reads the models file; `base`: the configuration's folder, where relative paths start."""
        self._read_catalogue = read_catalogue
        self._settings = settings
        self._devices = {d.uuid: d for d in devices}
        self._keys = base / settings.keys_dir
        self._socket_file = find_socket_file(settings.socket_file)
        self._state_file = find_state_file(settings.state_dir)
        self._model_dirs = [base / d for d in settings.model_dirs]
        self._hub_cache = cache_folder(base / settings.hub_cache if settings.hub_cache else None)
        self._machine = Machine(settings, devices, read_catalogue(), new_id=new_incarnation)
        self._queue: deque[events.Event] = deque()
        self._is_handling = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._manager = ServiceManager()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status. Raises ConfigError if it cannot start."""
        settings = self._settings
        with serving(settings.metrics_endpoint, settings.name, lambda: self._machine.published):
            return await self._run()

    async def _run(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            gate = self._make_gate(context)
            try:
                self._bus = Bus(context, self._settings.endpoint.zmq, self._post, gate, self._socket_file)
            except zmq.ZMQError as error:
                if gate is not None:
                    gate.close()
                what = f"listen: {self._settings.endpoint}" + (f", {self._socket_file}" if self._socket_file else "")
                raise ConfigError(f"{what}: {error.strerror}") from None
            self._children = Children(self._child_exited)
            self._fetches = Fetches(self._hub_cache, self._post)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._ask_to_stop)
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
            log.info("%s listens on %s", self._settings.name, self._settings.endpoint)
            if gate is not None:
                log.info("its key is %s, %s", gate.pair.public.hex(), fingerprint(gate.pair.public))
            elif self._settings.is_exposed:
                log.warning("security: plaintext; everybody who can reach %s can use and steer this host",
                            self._settings.endpoint)  # fmt: skip
            saved = read_state(self._state_file) if self._state_file is not None else None
            library = Library(self._model_dirs, self._hub_cache)
            self._lookout = Lookout(library, self._locate, self._found, self._located)
            self._post(events.Started(saved, time.time()))
            self._lookout.start()
            self._manager.ready(status_line(self._machine.host))
            if self._manager.is_present:
                self._beat()
            self._asleep_s = asleep_s()
            self._watch_sleep()
            status = await self._ended
            self._lookout.stop()
            self._fetches.stop()
            self._bus.close()
            return status
        finally:
            for timer in self._timers.values():
                timer.cancel()
            context.term()

    def _beat(self) -> None:
        """Show that this loop turns, and what it is busy with."""
        self._timers["beat"] = self._loop.call_later(BEAT_S, self._beat)
        self._manager.beat()
        if not self._machine.host.stopping:
            self._manager.status(status_line(self._machine.host))

    def _watch_sleep(self) -> None:
        """Notice that the host was suspended: the one clock has stood still, the other has not."""
        self._timers["sleep"] = self._loop.call_later(BEAT_S, self._watch_sleep)
        before, self._asleep_s = self._asleep_s, asleep_s()
        if self._asleep_s - before > SLEPT_S:
            self._post(events.Woken(self._asleep_s - before))

    def _ask_to_stop(self) -> None:
        settings = self._settings
        within_s = settings.drain_s + settings.watchdog.term_s + STOP_MARGIN_S
        self._manager.stopping("waiting for running jobs", within_s)
        self._post(events.StopAsked())

    def _reload(self) -> None:
        """Take over a changed models file; a bad one changes nothing."""
        if self._machine.host.stopping:
            return
        self._manager.reloading()
        try:
            catalogue = self._read_catalogue()
        except ConfigError as error:
            log.error("the models file is not valid; the one in force stays: %s", error)
        else:
            log.info("models file reloaded: %d models", len(catalogue.models))
            self._post(events.CatalogueRead(catalogue))
        self._manager.ready(status_line(self._machine.host))

    def _make_gate(self, context: "zmq.Context[zmq.Socket[bytes]]") -> Gate | None:
        if self._settings.is_plain:
            return None
        key = self._keys / KEY_FILE
        if not key.exists():
            raise ConfigError(
                f"{key}: is missing, and {self._settings.endpoint} asks for one; run `neuron keygen`, "
                "or, where nobody else is on the network, set security: plaintext"
            )
        return Gate(context, self._keys)

    def _found(self, models: list[Found], disks: list[DiskState]) -> None:
        """Take what the lookout reports from its thread."""
        self._post_from_thread(events.ModelsFound(models, disks))

    def _located(self, places: Places) -> None:
        """Take what the lookout reports from its thread."""
        self._post_from_thread(events.SourcesLocated(places))

    def _post_from_thread(self, event: events.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._post, event)

    def _locate(self, source: str) -> str | None:
        try:
            return str(resolve_source(source, self._model_dirs, self._hub_cache))
        except RequestError:
            return None

    def _post(self, event: events.Event) -> None:
        """Take an event; what carrying out its instructions brings about waits its turn."""
        self._queue.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._queue:
                self._machine.host.undecodable = self._bus.undecodable
                for instruction in self._machine.handle(self._queue.popleft(), time.monotonic()):
                    self._carry_out(instruction)
        finally:
            self._is_handling = False

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case SendPeer(peer, message):
                self._bus.send_peer(peer, message)
            case SendChild(incarnation, message):
                self._bus.send_child(incarnation, message)
            case Nudge(incarnation):
                self._bus.nudge(incarnation)
            case SetTimer(key, at):
                self._cancel(key)
                self._timers[key] = self._loop.call_later(max(0.0, at - time.monotonic()), self._fire, key)
            case CancelTimer(key):
                self._cancel(key)
            case Say(level, text, fields):
                log.log(_levels[level.upper()], text, extra={"fields": fields})
            case Spawn():
                self._spawn(instruction)
            case Kill(incarnation, hard):
                self._children.kill(incarnation, hard=hard)
            case ResolveSource():
                self._resolve(instruction)
            case WatchSources(sources):
                self._lookout.watch(sources)
            case FetchSource(source):
                self._fetches.start(source)
            case TellLog(peer, request, child, since):
                cursor, lines = self._children.last_words.since(child, since)
                incarnation = self._machine.host.incarnation
                reply = LogReply(request=request, incarnation=incarnation, cursor=cursor, lines=lines)
                self._bus.send_peer(peer, reply)
            case SaveState(saved):
                if self._state_file is not None:
                    write_state(self._state_file, saved)
            case Exit(status):
                if not self._ended.done():
                    self._ended.set_result(status)

    def _cancel(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _fire(self, key: str) -> None:
        del self._timers[key]
        self._post(events.TimerFired(key))

    def _spawn(self, spawn: Spawn) -> None:
        settings = self._settings
        environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order; CUDA's own is by speed
            "GGML_NO_BACKTRACE": "1",  # else a debugger is started first, and an abort takes a second longer
        }
        arguments = []
        if spawn.role != "probe":
            arguments += ["--incarnation", spawn.incarnation, "--engine", settings.engine]
            arguments += ["--log-level", settings.log.level, "--log-format", choose(settings.log.format)]
        if spawn.role == "worker":
            device, owned = self._devices[spawn.name], [self._devices[d] for d in spawn.devices]
            # Several devices of the configuration may be shares of one GPU, which is listed once.
            visible = list(dict.fromkeys(d.visible for d in owned))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
            arguments += ["--device", device.uuid, "--kind", device.kind]
            arguments += ["--places", ",".join(str(visible.index(d.visible)) for d in owned)]
            threads = sum(d.threads or os.cpu_count() or 1 for d in owned)
            arguments += ["--threads", str(min(threads, max(os.cpu_count() or 1, device.threads or 1)))]
            arguments += ["--step-budget-ms", str(settings.step_budget_ms)]
        try:
            pid, line = self._children.spawn(
                spawn.incarnation,
                f"neuron.{spawn.role}",
                spawn.name,
                arguments,
                environment,
                leaves_trace=spawn.role == "worker",
            )
        except OSError as error:
            self._child_exited(spawn.incarnation, ChildEnd(f"could not be started: {error.strerror}"))
        else:
            self._bus.adopt(spawn.incarnation, spawn.role, line)
            self._post(events.ChildSpawned(spawn.incarnation, pid))

    def _child_exited(self, incarnation: str, end: ChildEnd) -> None:
        self._bus.dismiss(incarnation)
        self._post(
            events.ChildExited(
                incarnation,
                end.cause,
                is_outside=end.is_outside,
                lacks_engine=end.lacks_engine,
                steps=end.trace.steps,
                named=end.trace.named,
            )
        )

    def _resolve(self, wanted: ResolveSource) -> None:
        model, number = wanted.model, wanted.number
        try:
            path = str(resolve_source(wanted.source, self._model_dirs, self._hub_cache))
        except RequestError as error:
            self._post(events.SourceResolved(model, number, None, error.message))
        else:
            self._post(events.SourceResolved(model, number, path, identity=identify([path, *wanted.beside])))
