"""What all gateway processes tell each other of their requests, so that a page served by any of them shows all.

Shared memory, made before the fork. A ring of the last requests, and a row for each process with what it has counted:

    number of the last request │ rows: pid, tokens, running │ slots: number, bytes, one request as msgpack

Writers exclude each other by a lock that the kernel takes back from a process that dies. Readers take no lock: a slot
whose number is not the expected one before and after it was read is being replaced, and is left out.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import msgspec

SLOTS = 256
SLOT = 1024
PROCESSES = 256
_TOTAL = struct.Struct("<Q")
_ROW = struct.Struct("<QQQ")
_HEAD = struct.Struct("<QI")
_ROWS_AT = 64
_SLOTS_AT = _ROWS_AT + PROCESSES * _ROW.size
_SIZE = _SLOTS_AT + SLOTS * SLOT
_TEXT = 160
"""Characters of a text that are kept."""


class Ended(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request that has ended."""

    serial: int = 0
    """Rises by one with each request of the whole gateway."""
    at: float
    """When it ended, seconds since 1970."""
    request_id: str
    principal: str
    dialect: str
    model: str | None = None
    node: str | None = None
    status: int = 0
    outcome: str
    seconds: float
    ttft_s: float | None = None
    queue_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    tokens_per_s: float | None = None
    """While it generated."""
    cold: bool = False
    recoveries: int = 0


_decode = msgspec.msgpack.Decoder(Ended)


class Activity:
    """To be made before the fork; every process may write and read."""

    def __init__(self) -> None:
        self._file = os.memfd_create("cortex-activity", os.MFD_CLOEXEC)
        os.ftruncate(self._file, _SIZE)
        self._memory = mmap.mmap(self._file, _SIZE)
        self._row: int | None = None

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self._file)

    @property
    def last(self) -> int:
        """Number of the last request."""
        return int(_TOTAL.unpack_from(self._memory, 0)[0])

    def add(self, ended: Ended) -> None:
        """Tell of a request that has ended."""
        for name in ("request_id", "principal", "model", "node", "outcome"):
            text = getattr(ended, name)
            if text is not None and len(text) > _TEXT:
                setattr(ended, name, text[: _TEXT - 1] + "…")
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            ended.serial = self.last + 1
            data = msgspec.msgpack.encode(ended)
            if len(data) > SLOT - _HEAD.size:
                return  # texts of four bytes a character, all of them too long: nobody's honest request
            at = _SLOTS_AT + ended.serial % SLOTS * SLOT
            _HEAD.pack_into(self._memory, at, 0, 0)
            self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
            _HEAD.pack_into(self._memory, at, ended.serial, len(data))
            _TOTAL.pack_into(self._memory, 0, ended.serial)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def since(self, serial: int) -> list[Ended]:
        """Return the remembered requests after number `serial`, oldest first."""
        last = self.last
        return list(self._read(max(serial, last - SLOTS) + 1, last))

    def _read(self, first: int, last: int) -> Iterator[Ended]:
        for serial in range(first, last + 1):
            at = _SLOTS_AT + serial % SLOTS * SLOT
            head = _HEAD.unpack_from(self._memory, at)
            data = bytes(self._memory[at + _HEAD.size : at + _HEAD.size + head[1]])
            if head[0] == serial and _HEAD.unpack_from(self._memory, at) == head:
                yield _decode.decode(data)

    def report(self, tokens: int, running: int) -> None:
        """Tell what this process has received in all, and how many requests it has open."""
        if self._row is None:
            self._row = self._take_row()
        _ROW.pack_into(self._memory, _ROWS_AT + self._row * _ROW.size, os.getpid(), tokens, running)

    def _take_row(self) -> int:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            pids = [self._process(row)[0] for row in range(PROCESSES)]
            row = next((r for r, pid in enumerate(pids) if not pid or not _is_alive(pid)), 0)
            _ROW.pack_into(self._memory, _ROWS_AT + row * _ROW.size, os.getpid(), 0, 0)
            return row
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _process(self, row: int) -> tuple[int, int, int]:
        pid, tokens, running = _ROW.unpack_from(self._memory, _ROWS_AT + row * _ROW.size)
        return pid, tokens, running

    def totals(self) -> dict[int, tuple[int, int]]:
        """Map the pid of each process that lives to its tokens and its open requests."""
        rows = (self._process(row) for row in range(PROCESSES))
        return {pid: (tokens, running) for pid, tokens, running in rows if pid and _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
