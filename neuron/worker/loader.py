"""Loading and unloading beside the loop: the calls take seconds, release the GIL, and must not stop other models."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.messages import LoadModel
from neuron.worker.engine import DeviceLost, Engine, LoadError, Model

log = logging.getLogger(__name__)

PROGRESS_S = 0.1
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
    model: Model | None
    """None: it failed, for the reason in `message`."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class UnloadEnded:
    """A model's memory is free."""

    model: str


LoaderEvent = LoadMoved | LoadEnded | UnloadEnded | DeviceLost


class Loader:
    """One thread, one load or unload after the other. Its events wait in `take` for the loop."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        """`wake` is called from the thread after each event."""
        self._engine = engine
        self._wake = wake
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[LoaderEvent] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def load(self, order: LoadModel) -> None:
        """Load a model; ends in LoadEnded."""
        self._orders.put(lambda: self._load(order))

    def unload(self, name: str, model: Model) -> None:
        """Free a model that nobody uses any more; ends in UnloadEnded."""
        self._orders.put(lambda: self._unload(name, model))

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
            return not self._is_closing

        model = None
        try:
            if self._is_closing:
                raise LoadError("the worker is stopping")
            model = self._engine.load(order.path, kv_tokens=order.kv_tokens, parallel=order.parallel, progress=progress)
            self._post(LoadMoved(order.model, None))
            model.warm_up()
        except DeviceLost as error:
            self._post(error)
            return
        except Exception as error:
            if not isinstance(error, LoadError):
                log.exception("load failed")
            if model is not None:
                model.close()
            self._post(LoadEnded(order, None, str(error) or type(error).__name__))
            return
        self._post(LoadEnded(order, model))

    def _unload(self, name: str, model: Model) -> None:
        model.close()
        self._post(UnloadEnded(name))
