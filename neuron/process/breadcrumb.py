"""What a worker computes at this moment, in memory that outlives it: whom to suspect when it dies at work.

Written before each call that may end the process, so it must cost next to nothing: the names are written again only
when the batch changes, and a step within a batch is one number.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

SIZE = 64 * 1024
_HEAD = struct.Struct("<QiI")
"""Completed steps; what is computed; bytes of names."""
_NOTHING, _ALL = -1, -2
"""Instead of the place of one job among the names."""


class Trace(NamedTuple):
    """What a process left behind."""

    steps: int = 0
    """Completed for jobs."""
    named: tuple[str, ...] = ()
    """Jobs of the call that was in progress."""


def create() -> int:
    """Return the file descriptor of an empty trace, to be handed to a child."""
    fd = os.memfd_create("breadcrumb", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, _HEAD.pack(0, _NOTHING, 0), 0)
    return fd


def read(fd: int) -> Trace:
    """Return what the process that had this descriptor was at."""
    steps, at, length = _HEAD.unpack(os.pread(fd, _HEAD.size, 0))
    if at == _NOTHING or not 0 < length <= SIZE - _HEAD.size:
        return Trace(steps)
    names = tuple(os.pread(fd, length, _HEAD.size).decode(errors="replace").split("\n"))
    return Trace(steps, names if not 0 <= at < len(names) else names[at : at + 1])


class Breadcrumb:
    """The worker's end."""

    def __init__(self, fd: int | None = None) -> None:
        """Write to what `create` has made; None: to nowhere."""
        self._memory = mmap.mmap(-1 if fd is None else fd, SIZE)
        self._names: Sequence[str] = ()
        self._length = 0
        self._steps = 0

    def batch(self, jobs: Sequence[str]) -> None:
        """A call begins that computes something for all of these jobs."""
        if jobs != self._names:
            data = "\n".join(jobs).encode()[: SIZE - _HEAD.size]
            self._mark(_NOTHING)
            self._memory[_HEAD.size : _HEAD.size + len(data)] = data
            self._names, self._length = jobs, len(data)
        self._mark(_ALL)

    def member(self, index: int) -> None:
        """A call begins for one job of the batch alone."""
        self._mark(index)

    def done(self, steps: int) -> None:
        """No call is in progress; `steps` have been completed so far."""
        self._steps = steps
        self._mark(_NOTHING)

    def close(self) -> None:
        """Leave what there is as it is."""
        self._memory.close()

    def _mark(self, at: int) -> None:
        _HEAD.pack_into(self._memory, 0, self._steps, at, self._length)
