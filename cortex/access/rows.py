"""Seats and windows: what each client uses just now, in memory that all gateway processes of a host share.

A transaction for each request would cost more than the rest of its way through the gateway. So every process has a row
of its own for each client, which it alone writes, and a client's use is the sum over the processes. A number that is
read while its owner changes it is one that was true a moment ago; whoever wants something adds it first and looks at
the sum then, so that two processes that do so at once may both be refused, but never both be let in.

    row: owner · tokens today · reserved · seats, day · 32 × tick · 32 × requests · 32 × tokens

A tick is two seconds of the wall clock, which goes on over a restart. A process that is gone leaves its windows to the
one that takes its place; its seats and reservations are given back by the arbiter.
"""

import contextlib
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("cortex")

TICK_S = 2
MINUTE = 60 // TICK_S
"""Ticks of the window."""
DAY_S = 86400
RING = 32
"""Ticks that are kept: a minute, the one that is just beginning, and the one that is just leaving."""
_HEADER = struct.Struct("<8sII")
_MAGIC = b"cortex\x001"
_HEADER_BYTES = 64
_ROW_BYTES = 448
_OWNER, _TODAY, _RESERVED = range(3)
"""Of the row's 64-bit numbers."""
_SEATS, _DAY = 6, 7
_TICKS = 8
_REQUESTS = _TICKS + RING
_TOKENS = _REQUESTS + RING
"""Of its 32-bit numbers."""


class Use(NamedTuple):
    """Of one client, all processes together."""

    seats: int = 0
    requests: float = 0.0
    """In the last 60 seconds."""
    tokens: float = 0.0
    """In the last 60 seconds."""
    today: int = 0
    """Tokens since midnight UTC."""
    reserved: int = 0
    """Tokens that requests which are running may still take."""


@dataclass(slots=True)
class _Past:
    """Of one row, all processes together, as of one tick: what cannot change before the next one begins."""

    owner: int
    tick: int
    requests: int = 0
    tokens: int = 0
    oldest_requests: int = 0
    """Of the tick that is just leaving the window."""
    oldest_tokens: int = 0


class Rows:
    """The memory. Made by the arbiter before the fork; `place` says which rows a process writes."""

    def __init__(self, places: int, rows: int, file: Path | None = None) -> None:
        """`file`: where windows outlive a restart; one that cannot be used is logged, and nothing is kept then."""
        self.places = places
        self.rows = rows
        size = _HEADER_BYTES + places * rows * _ROW_BYTES
        kept = {} if file is None else _read(file, rows)
        self._memory = _map(file, size)
        _HEADER.pack_into(self._memory, 0, _MAGIC, places, rows)
        self._view = memoryview(self._memory)[_HEADER_BYTES:]
        self._long, self._short = self._view.cast("Q"), self._view.cast("I")
        self._past: dict[int, _Past] = {}
        """Looked up once in a tick: adding up a minute takes longer than all else that a request passes here."""
        for row, windows in kept.items():
            self._restore(row, *windows)

    def close(self) -> None:
        """Give the memory back; what is in the file stays there."""
        for view in (self._long, self._short, self._view):
            view.release()
        self._memory.close()

    def take(self, place: int, row: int, owner: int) -> None:
        """Take a seat."""
        self._own(place, row, owner)
        self._short[self._at(place, row) * _ROW_BYTES // 4 + _SEATS] += 1

    def leave(self, place: int, row: int, owner: int) -> None:
        """Give a seat back."""
        at = self._at(place, row)
        seats = at * _ROW_BYTES // 4 + _SEATS
        if self._long[at * _ROW_BYTES // 8 + _OWNER] == owner and self._short[seats]:
            self._short[seats] -= 1

    def reserve(self, place: int, row: int, owner: int, tokens: int) -> None:
        """Add to the tokens that are promised; a negative number takes back."""
        self._own(place, row, owner)
        at = self._at(place, row) * _ROW_BYTES // 8 + _RESERVED
        self._long[at] = max(0, self._long[at] + tokens)

    def count(self, place: int, row: int, owner: int, now: float, *, requests: int = 0, tokens: int = 0) -> None:
        """Count into the present tick and day; a negative number takes back what was counted just before."""
        self._own(place, row, owner)
        at = self._at(place, row)
        short, long = at * _ROW_BYTES // 4, at * _ROW_BYTES // 8
        tick, day = int(now) // TICK_S, int(now) // DAY_S
        cell = tick % RING
        if self._short[short + _TICKS + cell] != tick & 0xFFFFFFFF:
            # First what it held: whoever reads in between sees nothing of an old tick under the new number.
            self._short[short + _REQUESTS + cell] = self._short[short + _TOKENS + cell] = 0
            self._short[short + _TICKS + cell] = tick & 0xFFFFFFFF
        self._add(short + _REQUESTS + cell, requests)
        self._add(short + _TOKENS + cell, tokens)
        if self._short[short + _DAY] != day:
            self._long[long + _TODAY] = 0
            self._short[short + _DAY] = day
        self._long[long + _TODAY] = max(0, self._long[long + _TODAY] + tokens)

    def use(self, row: int, owner: int, now: float) -> Use:
        """Return what a client uses, all processes together."""
        day, tick = int(now) // DAY_S, int(now) // TICK_S
        past = self._past.get(row)
        if past is None or past.owner != owner or past.tick != tick:
            past = self._past[row] = self._look_back(row, owner, tick)
        fading = 1.0 - (now % TICK_S) / TICK_S  # of the oldest tick, that part which is still within the window
        requests = past.requests + fading * past.oldest_requests
        tokens = past.tokens + fading * past.oldest_tokens
        seats = today = reserved = 0
        long_view, short_view = self._long, self._short
        at = row * self.places * _ROW_BYTES
        for _ in range(self.places):
            long, short = at // 8, at // 4
            at += _ROW_BYTES
            if long_view[long + _OWNER] != owner:
                continue
            reserved += long_view[long + _RESERVED]
            seats += short_view[short + _SEATS]
            if short_view[short + _DAY] == day:
                today += long_view[long + _TODAY]
            for cell in (tick % RING, (tick - 1) % RING):
                if tick - short_view[short + _TICKS + cell] in (0, 1):
                    requests += short_view[short + _REQUESTS + cell]
                    tokens += short_view[short + _TOKENS + cell]
        return Use(seats, requests, tokens, today, reserved)

    def _look_back(self, row: int, owner: int, tick: int) -> "_Past":
        """Return the sums of the ticks that nobody writes any more."""
        past = _Past(owner, tick)
        first = tick - MINUTE
        for place in range(self.places):
            at = self._at(place, row)
            if self._long[at * _ROW_BYTES // 8 + _OWNER] != owner:
                continue
            short = at * _ROW_BYTES // 4
            cells = self._short[short + _TICKS : short + _TOKENS + RING].tolist()
            for cell in range(RING):
                if first < cells[cell] < tick - 1:
                    past.requests += cells[RING + cell]
                    past.tokens += cells[2 * RING + cell]
                elif cells[cell] == first:
                    past.oldest_requests += cells[RING + cell]
                    past.oldest_tokens += cells[2 * RING + cell]
        return past

    def ticks(self, row: int, owner: int, now: float) -> list[tuple[float, int, int]]:
        """Return for each tick of the window in how many seconds it will have left it, its requests and its tokens."""
        sums: dict[int, list[int]] = {}
        for place in range(self.places):
            at = self._at(place, row)
            if self._long[at * _ROW_BYTES // 8 + _OWNER] != owner:
                continue
            short = at * _ROW_BYTES // 4
            for cell in range(RING):
                entry = sums.setdefault(self._short[short + _TICKS + cell], [0, 0])
                entry[0] += self._short[short + _REQUESTS + cell]
                entry[1] += self._short[short + _TOKENS + cell]
        first = int(now) // TICK_S - MINUTE
        return [((t + 1 + MINUTE) * TICK_S - now, *sums[t]) for t in sorted(sums) if t >= first]  # type: ignore[misc]

    def vacate(self, place: int) -> None:
        """Give back the seats and reservations of a process that is gone. Its windows stay."""
        for row in range(self.rows):
            at = self._at(place, row)
            if self._long[at * _ROW_BYTES // 8 + _OWNER]:
                self._long[at * _ROW_BYTES // 8 + _RESERVED] = 0
                self._short[at * _ROW_BYTES // 4 + _SEATS] = 0

    def _at(self, place: int, row: int) -> int:
        return row * self.places + place

    def _own(self, place: int, row: int, owner: int) -> None:
        """Empty a row that belonged to a key that has been forgotten since."""
        at = self._at(place, row)
        if self._long[at * _ROW_BYTES // 8 + _OWNER] != owner:
            self._view[at * _ROW_BYTES : (at + 1) * _ROW_BYTES] = bytes(_ROW_BYTES)
            self._long[at * _ROW_BYTES // 8 + _OWNER] = owner

    def _add(self, at: int, number: int) -> None:
        self._short[at] = min(0xFFFFFFFF, max(0, self._short[at] + number))

    def _restore(self, row: int, owner: int, day: int, today: int, cells: dict[int, list[int]]) -> None:
        self._own(0, row, owner)
        long, short = self._at(0, row) * _ROW_BYTES // 8, self._at(0, row) * _ROW_BYTES // 4
        self._long[long + _TODAY], self._short[short + _DAY] = today, day
        for tick, (requests, tokens) in cells.items():
            cell = tick % RING
            if tick > self._short[short + _TICKS + cell]:
                self._short[short + _TICKS + cell] = tick
                self._short[short + _REQUESTS + cell] = requests
                self._short[short + _TOKENS + cell] = tokens


_Windows = tuple[int, int, int, dict[int, list[int]]]
"""Owner, day, tokens of that day, and by tick requests and tokens; all processes together."""


def _read(file: Path, rows: int) -> dict[int, _Windows]:
    """Return what a gateway before this one has left, however many processes it had; nothing where it is unusable."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("%s cannot be read: %s; limits begin anew", file, error.strerror)
        return {}
    if len(data) < _HEADER_BYTES:
        return {}
    magic, places, stored = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEADER_BYTES + places * stored * _ROW_BYTES:
        log.warning("%s is of another version; limits begin anew", file)
        return {}
    kept: dict[int, _Windows] = {}
    for row in range(min(stored, rows)):
        for values in _filled(data, row, places):
            owner, today, _, _, day, *cells = values
            before = kept.get(row, (owner, day, 0, {}))
            if before[0] != owner:
                continue
            sums = before[3]
            for tick, requests, tokens in zip(cells[:RING], cells[RING : 2 * RING], cells[2 * RING :], strict=True):
                if tick:
                    known = sums.setdefault(tick, [0, 0])
                    known[:] = [min(0xFFFFFFFF, known[0] + requests), min(0xFFFFFFFF, known[1] + tokens)]
            latest = max(day, before[1])
            total = (today if day == latest else 0) + (before[2] if before[1] == latest else 0)
            kept[row] = (owner, latest, total, sums)
    return kept


_ROW = struct.Struct(f"<QQQII{3 * RING}I")


def _filled(data: bytes, row: int, places: int) -> Iterator[tuple[int, ...]]:
    for place in range(places):
        values = _ROW.unpack_from(data, _HEADER_BYTES + (row * places + place) * _ROW_BYTES)
        if values[0]:
            yield values


def _map(file: Path | None, size: int) -> mmap.mmap:
    if file is not None:
        new = file.with_name(file.name + ".new")
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # a full disk is an error here, not a signal at some write
                memory = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            new.replace(file)
            return memory
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            log.warning("%s cannot be written: %s; a restart forgets what was used", file, error.strerror)
    return mmap.mmap(-1, size)
