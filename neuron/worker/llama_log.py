"""What llama.cpp says: to our log, and, while a model loads, to the one who has to explain a failure."""

import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

log = logging.getLogger("llama.cpp")

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""ggml_log_level → ours. What llama.cpp calls info is a page for each load."""
_CONTINUED = 5
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_FUNCTION = re.compile(r"^[\w:~]+: ")
_POOL_IS_LARGE = re.compile(r"n_ctx_seq \(\d+\) > n_ctx_train \(\d+\)")
"""A warning that holds for a context of one sequence. Here the cells are the pool of all slots, and one request's share
is bounded by the profile's `context`, which is checked before anything is loaded."""
_NO_MEMORY = re.compile(
    r"out of memory|(?:failed|unable) to allocate|cudaMalloc failed|not enough (?:memory|space)", re.I
)
_EMPTY_TALK = ("failed to load model", "failed to create context")


class Line(NamedTuple):
    """One line of llama.cpp's."""

    level: int
    text: str


_errors: deque[str] = deque(maxlen=8)
_collectors: list[list[Line]] = []
_partial: list[Any] = [logging.DEBUG, ""]
_kept_alive: list[Any] = []


def capture(log_set: Callable[..., None], callback_type: Callable[[Callable[..., None]], Any]) -> None:
    """Take llama.cpp's log from now on; nothing of it goes to stdout or stderr by itself."""
    callback = callback_type(_take)
    _kept_alive.append(callback)  # llama.cpp calls it for as long as the process lives
    log_set(callback, None)


@contextlib.contextmanager
def collect() -> Iterator[list[Line]]:
    """Collect lines, all levels."""
    lines: list[Line] = []
    _collectors.append(lines)
    try:
        yield lines
    finally:
        _collectors.remove(lines)


def decisive(lines: list[Line]) -> str:
    """Return the error that decided a failure: the first one, as those that follow only report it upwards."""
    errors = [_FUNCTION.sub("", line.text) for line in lines if line.level >= logging.ERROR]
    telling = [e for e in errors if not any(t in e for t in _EMPTY_TALK)]
    return (telling or errors or [""])[0]


def is_out_of_memory(lines: list[Line]) -> bool:
    """Say whether memory is what a load wanted for. llama.cpp has no other way to tell it."""
    return any(_NO_MEMORY.search(line.text) for line in lines if line.level >= logging.ERROR)


def last_error() -> str:
    """Return the latest error line."""
    return _errors[-1] if _errors else ""


class Buffers:
    """MiB by buffer and purpose (model, KV, RS, compute, output)."""

    def __init__(self, sizes: dict[tuple[str, str], float], kind: str) -> None:
        """`kind` of the device; that of a CPU has the host's memory for its own."""
        self._sizes = sizes
        self._kind = kind

    def device(self, *purposes: str) -> float:
        """Return what lies in the device's memory."""
        return sum(mb for (at, purpose), mb in self._sizes.items() if purpose in purposes and not self._is_host(at))

    def host(self) -> float:
        """Return what lies in the host's, where that is not the device's."""
        return sum(mb for (at, _), mb in self._sizes.items() if self._is_host(at))

    def mapped(self) -> float:
        """Return what is the file itself, mapped into memory."""
        return sum(mb for (at, _), mb in self._sizes.items() if at.endswith("_Mapped"))

    def _is_host(self, buffer: str) -> bool:
        return self._kind != "cpu" and (buffer.startswith("CPU") or buffer.endswith("_Host"))


def buffers_mb(lines: list[Line], kind: str) -> Buffers:
    """Return how much memory a load took, over all backends.

    llama.cpp accounts for its buffers in its log only; its C API has no call for it. Weights and KV come in several
    lines that add up; compute and output are said again when they are reserved again.
    """
    sizes: dict[tuple[str, str], float] = {}
    for line in lines:
        match = _BUFFER.search(line.text)
        if match:
            key, size = (match[1], match[2]), float(match[3])
            sizes[key] = size if match[2] in ("compute", "output") else sizes.get(key, 0.0) + size
    return Buffers(sizes, kind)


def _take(level: int, text: bytes, _: object) -> None:
    """Receive a piece of log, possibly less than a line; called from whatever thread llama.cpp is in."""
    if level != _CONTINUED:
        _partial[0] = _LEVELS.get(level, logging.DEBUG)
    *complete, _partial[1] = (_partial[1] + text.decode(errors="replace")).split("\n")
    for piece in complete:
        if piece.strip(" ."):
            _note(Line(_partial[0], piece.strip()))


def _note(line: Line) -> None:
    if _POOL_IS_LARGE.search(line.text):
        line = Line(logging.DEBUG, line.text)
    log.log(line.level, "%s", line.text)
    if line.level >= logging.ERROR:
        _errors.append(line.text)
    for lines in _collectors:
        lines.append(line)
