"""The engine loop: take commands, admit, plan, decode, sample, emit. One thread, one socket."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from msgspec.structs import replace

from common.errors import Code
from common.log import fields
from common.messages import (
    AbortTasks,
    CacheCleared,
    ClearModelCache,
    FailedItem,
    Go,
    Hold,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MemoryView,
    Phase,
    Pulse,
    ReportMemory,
    Run,
    ShareHostMemory,
    Stop,
    Task,
    ToWorker,
    Unloaded,
    UnloadModel,
    WorkerHello,
    WorkerMemory,
)
from neuron.process.breadcrumb import Breadcrumb
from neuron.worker.embedding import EmbeddingLane
from neuron.worker.engine import DeviceLost, Embedder, Engine, Model
from neuron.worker.host_tier import HostTier
from neuron.worker.lane import Lane
from neuron.worker.loader import LoadEnded, Loader, LoadMoved, UnloadEnded
from neuron.worker.outbox import Outbox

log = logging.getLogger(__name__)

PULSE_S = 0.2
IDLE_S = 1.0
RETRY_S = 0.05
"""Between attempts to send to a supervisor that has no room."""


AnyLane = Lane | EmbeddingLane


class Link(Protocol):
    """What the loop needs of neuron.worker.bus."""

    def receive(self) -> list[ToWorker]:
        """Return the messages that have come, without waiting."""

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        """Send, or return False."""

    def wait(self, timeout_s: float) -> None:
        """Wait for a message or a wake-up."""

    def wake(self) -> None:
        """End a wait."""


class Loop:
    """Everything a worker does between its Hello and its exit."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        *,
        incarnation: str,
        device: str,
        step_budget_s: float,
        places: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
        crumb: Breadcrumb | None = None,
    ) -> None:
        """`places`: for each device that this worker owns, which of the engine's it is.

        `crumb`: where it is left what is being computed.
        """
        self.lanes: dict[str, AnyLane] = {}
        self.steps = 0
        self._engine = engine
        self._link = link
        self._incarnation = incarnation
        self._device = device
        self._places = places
        self._step_budget_s = step_budget_s
        self._clock = clock
        self._crumb = crumb or Breadcrumb()
        self._outbox = Outbox(link.send)
        self._host = HostTier()
        self._loader = Loader(engine, link.wake, lambda: self._host.used)
        self._loading: dict[str, Phase] = {}
        """Models that are coming, in the order of their loads; the first is the one being worked on."""
        self._memory_mb: dict[str, int] = {}
        """By model: what its load took of the device."""
        self._unwanted: set[str] = set()
        """Models to unload whose load has not given up yet."""
        self._spent_s: dict[AnyLane, float] = {}
        """How long busy lanes have had the device."""
        self._phase: Phase = "starting"
        self._pulsed_at = 0.0
        self._is_stopping = False
        self._past_tokens = 0
        """Of models that are no longer here."""

    def run(self) -> None:
        """Serve until `stop` or a Stop message. Raises DeviceLost."""
        self.greet()
        while not self._is_stopping:
            self.step()
        self.close()

    def greet(self) -> None:
        """Say that this worker is up, and with what."""
        facts = self._engine.facts()
        self._outbox.say(
            WorkerHello(
                pid=os.getpid(),
                incarnation=self._incarnation,
                build=facts.build,
                backend=facts.backend,
                devices=facts.devices,
            )
        )

    def stop(self) -> None:
        """End `run` after the step in progress; may be called from a signal handler."""
        self._is_stopping = True
        self._link.wake()

    def close(self) -> None:
        """Free all models and send what is left."""
        self._loader.close()
        for lane in self.lanes.values():
            lane.fail_all(Code.SHUTTING_DOWN, "the worker is stopping")
            lane.model.close()
        self.lanes.clear()
        self._outbox.flush()
        self._engine.close()
        self._crumb.close()

    def step(self) -> None:
        """Go round once; without work, wait for a message first."""
        for message in self._link.receive():
            self._obey(message)
        self._take_loader_events()
        is_timed = any(lane.is_decoding for lane in self.lanes.values())
        for lane in self.lanes.values():
            lane.admit(is_timed=is_timed)
        self._crumb.done(self.steps)
        busy = [lane for lane in self.lanes.values() if lane.is_busy]
        has_sent_all = self._outbox.flush()
        self._pulse(busy)
        if busy and not self._is_stopping:
            # Several models share the device in turns, so they also share the time a stream may have to wait.
            timed = any(lane.is_decoding for lane in busy)
            lane = self._whose_turn(busy)
            began = self._clock()
            self.steps += lane.step(self._step_budget_s / len(busy) if timed else None)
            self._crumb.done(self.steps)
            self._spent_s[lane] += self._clock() - began
            self._outbox.flush()
        # Also in a loop that never rests: what is idle beside running sequences slows them.
        has_tidied = [lane.tidy() for lane in self.lanes.values()]
        if not (busy or self._is_stopping or any(has_tidied)):
            self._link.wait(IDLE_S if has_sent_all else RETRY_S)

    def _whose_turn(self, busy: list[AnyLane]) -> AnyLane:
        """Return who has had least of the device's time; who comes in starts level with the others."""
        self._spent_s = {lane: s for lane, s in self._spent_s.items() if lane in busy}
        level = min(self._spent_s.values(), default=0.0)
        return min(busy, key=lambda lane: self._spent_s.setdefault(lane, level))

    def _pulse(self, busy: list[AnyLane]) -> None:
        """Show the supervisor that the loop comes round, and say what it is about to do."""
        now = self._clock()
        if busy:
            phase: Phase = "prefill" if any(lane.is_prefilling for lane in busy) else "decode"
        else:
            phase = next(iter(self._loading.values()), "idle")
        # While a load is all there is, its own progress is the sign of life: a loop that waits proves nothing.
        is_due = now - self._pulsed_at >= PULSE_S and (bool(busy) or not self._loading)
        if is_due or (phase != self._phase):
            lanes = [lane.load() for lane in self.lanes.values()]
            self._outbox.pulse(Pulse(steps=self.steps, phase=phase, tokens=self.tokens, lanes=lanes))
            self._pulsed_at, self._phase = now, phase

    def _obey(self, message: ToWorker) -> None:
        match message:
            case Run(tasks=tasks):
                for task in tasks:
                    self._run(task)
            case AbortTasks(jobs=jobs):
                for lane in self.lanes.values():
                    for key in jobs:
                        lane.abort(key)
            case LoadModel():
                self._load(message)
            case UnloadModel(model=model):
                self._unload(model)
            case Hold(gateway=gateway):
                self._outbox.hold(gateway)
            case Go(gateway=gateway):
                self._outbox.go(gateway)
            case ClearModelCache(request=request, model=model):
                lanes = [lane for name, lane in self.lanes.items() if model in (None, name)]
                cleared = sum(lane.clear() for lane in lanes)
                if model is None:
                    self._host.clear()  # also of models that are no longer here
                self._outbox.say(CacheCleared(request=request, sequences=cleared))
            case ShareHostMemory(mb=mb):
                self._host.resize(mb << 20)
            case ReportMemory(request=request):
                self._outbox.say(MemoryView(request=request, memory=self._memory()))
            case Stop():
                self._is_stopping = True

    def _run(self, task: Task) -> None:
        lane = self.lanes.get(task.model)
        if lane is not None:
            lane.add(task)
            return
        code, text = Code.MODEL_UNLOADED, f"model '{task.model}' is not loaded here"
        item = FailedItem(job=task.job, attempt=task.attempt, code=code, message=text, retriable=True)
        self._outbox.failed(task.gateway, item)
        log.info("task failed: %s", text, extra=fields(request_id=task.request_id, job=task.job, code=code))

    def _load(self, order: LoadModel) -> None:
        self._unwanted.discard(order.model)
        lane = self.lanes.get(order.model)
        if lane is not None:
            self._say_loaded(order, lane)
        elif order.model not in self._loading:
            self._loading[order.model] = "loading"
            self._loader.load(replace(order, devices=sorted({self._places[i] for i in order.devices})))

    def _unload(self, name: str) -> None:
        lane = self.lanes.pop(name, None)
        if lane is not None:
            self._past_tokens += lane.tokens
            lane.fail_all(Code.MODEL_UNLOADED, f"model '{name}' is being unloaded")
            self._loader.unload(name, lane.model, partial(lane.save_all, self._host.budget))
        elif name in self._loading:
            self._unwanted.add(name)
            self._loader.give_up(name)
        else:
            self._outbox.say(Unloaded(model=name))

    def _take_loader_events(self) -> None:
        for event in self._loader.take():
            match event:
                case LoadMoved(model=model, progress=None):
                    self._loading[model] = "warming"
                case LoadMoved(model=model, progress=float(progress)):
                    self._outbox.say(LoadProgress(model=model, progress=progress))
                case LoadEnded():
                    self._end_load(event)
                case DeviceLost():
                    raise event
                case UnloadEnded(model=model, kept_mb=kept_mb):
                    for tokens, start, data in event.saves:
                        self._host.add(event.state_key, tokens, start, data, whole=event.is_whole)
                    self._outbox.say(Unloaded(model=model, kept_mb=kept_mb))

    def _end_load(self, event: LoadEnded) -> None:
        order = event.order
        del self._loading[order.model]
        if event.model is None:
            if order.model in self._unwanted:
                self._unwanted.discard(order.model)
                self._outbox.say(Unloaded(model=order.model))
                return
            code = Code.NO_CAPACITY if event.is_out_of_memory else Code.MODEL_LOADING_FAILED
            self._outbox.say(LoadFailed(model=order.model, code=code, message=event.message))
            return
        # What llama.cpp accounts for is not all touched yet, and what it holds is not all accounted for.
        self._memory_mb[order.model] = max(event.model.memory_mb, event.grown_mb)
        lane = self.lanes[order.model] = self._make_lane(order, event.model, event.token_s)
        self._say_loaded(order, lane)
        if order.model in self._unwanted:
            self._unwanted.discard(order.model)
            self._unload(order.model)

    def _make_lane(self, order: LoadModel, model: Model | Embedder, token_s: float) -> AnyLane:
        if order.is_embedding:
            embedder = cast(Embedder, model)
            return EmbeddingLane(
                order.model,
                embedder,
                context=order.context,
                outbox=self._outbox,
                clock=self._clock,
                crumb=self._crumb,
            )
        return Lane(
            order.model,
            cast(Model, model),
            context=order.context,
            parallel=order.parallel,
            outbox=self._outbox,
            host=self._host,
            token_s=token_s,
            clock=self._clock,
            crumb=self._crumb,
        )

    def _say_loaded(self, order: LoadModel, lane: AnyLane) -> None:
        model = lane.model
        self._outbox.say(
            Loaded(
                model=order.model,
                memory_mb=self._memory_mb[order.model],
                context=order.context,
                kv_tokens=model.kv_tokens,
                parallel=order.parallel,
                host_mb=model.host_mb,
                in_force=model.in_force,
            )
        )

    @property
    def tokens(self) -> int:
        """Return how many were generated since the start."""
        return self._past_tokens + sum(lane.tokens for lane in self.lanes.values())

    def _memory(self) -> WorkerMemory:
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        # Asking the driver makes a context on the device, which no worker without a model shall have.
        device = self._engine.device_memory() if self.lanes else None
        return WorkerMemory(
            device=self._device,
            process_mb=resident_pages * os.sysconf("SC_PAGE_SIZE") >> 20,
            device_free_mb=device[0] if device else None,
            device_total_mb=device[1] if device else None,
            models=[lane.memory() for lane in self.lanes.values()],
            jobs=[job for lane in self.lanes.values() for job in lane.progress()],
            tokens=self.tokens,
        )
