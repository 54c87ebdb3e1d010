"""Loading and unloading beside the loop: the calls take seconds, release the GIL, and must not stop other models."""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.messages import LoadModel
from neuron.worker.engine import DeviceLost, Embedder, Engine, LoadError, MemoryKind, Model, OutOfMemory
from neuron.worker.kv_pool import Saved

log = logging.getLogger(__name__)

PROGRESS_S = 0.1
_ANONYMOUS = re.compile(rb"^RssAnon:\s+(\d+) kB", re.MULTILINE)
JOIN_S = 1.5
"""A load that does not give up in this time is left to the end of the process."""


@dataclass(frozen=True, slots=True)
class LoadMoved:
    """A load has got on; `progress` None: it is complete and warming up."""

    model: str
    progress: float | None


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load is over."""

    order: LoadModel
    model: Model | Embedder | None
    """None: it failed, for the reason in `message`."""
    message: str = ""
    token_s: float = 0.0
    """How long its first token took, which is more than one of a prompt takes."""
    is_out_of_memory: bool = False
    grown_mb: int = 0
    """Where the device has no driver to ask: what the process has grown by, with the file that is mapped."""


@dataclass(frozen=True, slots=True)
class UnloadEnded:
    """A model is freed."""

    model: str
    state_key: str
    kept_mb: int
    """Of the device memory that it took, what did not come back."""
    saves: list[Saved] = field(default_factory=list)
    """What was in its cells and not in host memory yet."""
    is_whole: bool = False
    """Whether each of them is of use in its full length only."""


LoaderEvent = LoadMoved | LoadEnded | UnloadEnded | DeviceLost


class Loader:
    """One thread, one load or unload after the other. Its events wait in `take` for the loop."""

    def __init__(self, engine: Engine, wake: Callable[[], None], aside: Callable[[], int] = lambda: 0) -> None:
        """`wake` is called from the thread after each event. `aside`: bytes of this process that belong to no load."""
        self._aside = aside
        self._engine = engine
        self._wake = wake
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[LoaderEvent] = queue.SimpleQueue()
        self._given_up: set[str] = set()
        """Models whose load in progress, or the next one in the queue, shall end."""
        self._taken_mb: dict[str, int] = {}
        """Device memory that a load took, as the driver counts; none where it is the host's."""
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def load(self, order: LoadModel) -> None:
        """Load a model; ends in LoadEnded."""
        self._orders.put(lambda: self._load(order))

    def give_up(self, name: str) -> None:
        """End a model's load as soon as llama.cpp asks; it ends in LoadEnded all the same."""
        self._given_up.add(name)

    def unload(self, name: str, model: Model | Embedder, save: Callable[[], list[Saved]]) -> None:
        """Save what `save` returns and free a model that nobody uses any more; ends in UnloadEnded."""
        self._orders.put(lambda: self._unload(name, model, save))

    def take(self) -> list[LoaderEvent]:
        """Return what has happened since."""
        events: list[LoaderEvent] = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """Give up a load in progress, carry out what is left, and end the thread."""
        self._is_closing = True
        self._orders.put(None)
        self._thread.join(JOIN_S)
        for event in self.take():
            if isinstance(event, LoadEnded) and event.model is not None:
                event.model.close()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _post(self, event: LoaderEvent) -> None:
        self._events.put(event)
        self._wake()

    def _load(self, order: LoadModel) -> None:
        last = 0.0

        def progress(fraction: float) -> bool:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_S:
                last = now
                self._post(LoadMoved(order.model, fraction))
            return not (self._is_closing or order.model in self._given_up)

        model: Model | Embedder | None = None
        free_mb, own_mb, grown_mb = self._free_mb(), self._own_mb(), 0
        try:
            if not progress(0.0):
                raise LoadError("given up before it began")
            if order.is_embedding:
                model = self._engine.load_embedder(
                    order.path,
                    tokens=order.kv_tokens,
                    options=order.engine,
                    progress=progress,
                    devices=order.devices,
                )
            else:
                model = self._engine.load(
                    order.path,
                    kv_tokens=order.kv_tokens,
                    parallel=order.parallel,
                    idle=order.idle_sequences,
                    options=order.engine,
                    progress=progress,
                    devices=order.devices,
                )
            self._post(LoadMoved(order.model, None))
            began = time.monotonic()
            model.warm_up()
            token_s = time.monotonic() - began
            if free_mb is not None:
                self._taken_mb[order.model] = max(0, free_mb - (self._free_mb() or 0))
            else:
                grown_mb = model.mapped_mb + max(0, round(self._own_mb() - own_mb))
        except DeviceLost as error:
            self._post(error)
            return
        except Exception as error:
            if not isinstance(error, LoadError):
                log.exception("load failed")
            if model is not None:
                model.close()
            self._post(
                LoadEnded(
                    order,
                    None,
                    str(error) or type(error).__name__,
                    is_out_of_memory=isinstance(error, OutOfMemory),
                )
            )
            return
        finally:
            self._given_up.discard(order.model)
        self._post(LoadEnded(order, model, token_s=token_s, grown_mb=grown_mb))

    def _unload(self, name: str, model: Model | Embedder, save: Callable[[], list[Saved]]) -> None:
        saves = [] if self._is_closing else save()
        taken_mb, free_mb = self._taken_mb.pop(name, 0), self._free_mb()
        model.close()
        kept_mb = 0 if free_mb is None else max(0, taken_mb - ((self._free_mb() or 0) - free_mb))
        self._post(UnloadEnded(name, model.state_key, kept_mb, saves, model.kind is not MemoryKind.CELLS))

    def _own_mb(self) -> float:
        """Return the MiB of this process that are no file's: weights that are mapped are not among them."""
        found = _ANONYMOUS.search(Path("/proc/self/status").read_bytes())
        return (int(found[1]) * 1024 - self._aside()) / 2**20 if found else 0.0

    def _free_mb(self) -> int | None:
        memory = self._engine.device_memory()
        return None if memory is None else memory[0]
