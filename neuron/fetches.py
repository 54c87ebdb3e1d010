"""The processes that fetch models for requests; one a source. Shell: tells the machine how far each is, and its end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from common.ids import new_incarnation
from neuron.broker.line import Line
from neuron.models.fetch import FetchSaid
from neuron.process.children import Children, Exit
from neuron.supervisor.events import FetchEnded, FetchMoved

Report = Callable[[FetchMoved | FetchEnded], None]


class Fetches:
    """Starts them and listens to them."""

    def __init__(self, cache: Path, report: Report) -> None:
        self._cache = cache
        self._report = report
        self._children = Children(self._exited)
        self._sources: dict[str, str] = {}
        """By incarnation."""
        self._lines: dict[str, Line] = {}
        self._ends: dict[str, FetchSaid] = {}
        """What a process has said last of all, by incarnation."""

    def start(self, source: str) -> None:
        """Begin to fetch."""
        incarnation = new_incarnation()
        arguments = ["--cache", str(self._cache), source]
        try:
            _, end = self._children.spawn(incarnation, "neuron.models.fetch", f"fetch {source}", arguments, {})
        except OSError as error:
            self._report(FetchEnded(source, f"it cannot be fetched: {error.strerror}"))
            return
        self._sources[incarnation] = source
        self._lines[incarnation] = Line(end, partial(self._heard, incarnation))

    def stop(self) -> None:
        """End them; what has come is kept, and the next one goes on with it."""
        for incarnation in list(self._sources):
            self._children.kill(incarnation, hard=True)

    def _heard(self, incarnation: str, parts: list[bytes]) -> None:
        said = msgspec.json.decode(parts[0], type=FetchSaid)
        if said.is_complete or said.error is not None:
            self._ends[incarnation] = said
        elif said.total_bytes:
            self._report(FetchMoved(self._sources[incarnation], said.done_bytes / said.total_bytes))

    def _exited(self, incarnation: str, end: Exit) -> None:
        line = self._lines.pop(incarnation)
        line.drain()
        line.close()
        said = self._ends.pop(incarnation, FetchSaid(error=f"the process that fetches it has ended ({end.cause})"))
        self._report(FetchEnded(self._sources.pop(incarnation), said.error))
