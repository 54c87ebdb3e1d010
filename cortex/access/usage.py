"""usage.sqlite: what each key has used, by day and model. Every gateway process adds to it, once a second at most."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("cortex")

NAME = "usage.sqlite"
BUSY_S = 5.0
"""For another process to be done with the file."""
_SCHEMA = """
create table if not exists usage (
    day text not null, key text not null, model text not null,
    requests integer not null, prompt_tokens integer not null, cached_tokens integer not null,
    completion_tokens integer not null,
    primary key (day, key, model)
) without rowid
"""
# Columns by name: a newer gateway may have added others, with defaults, and an older one goes on with its own.
_ADD = """
insert into usage (day, key, model, requests, prompt_tokens, cached_tokens, completion_tokens)
values (?, ?, ?, ?, ?, ?, ?) on conflict do update set
    requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens
"""
_READ = """
select day, key, model, requests, prompt_tokens, cached_tokens, completion_tokens
from usage where day >= ? order by day, key, model
"""


class Used(NamedTuple):
    """By one key, of one model, on one day."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: object) -> "Used":
        assert isinstance(other, Used)
        return Used(*(a + b for a, b in zip(self, other, strict=True)))


class Row(NamedTuple):
    """A line of the table."""

    day: str
    """As 2026-11-25, in UTC."""
    key: str
    """Id, `anonymous`, or `admin`: a key of the configuration."""
    model: str
    used: Used


class UsageBook:
    """Gathers in memory; write() puts it into the file, from whatever thread. What cannot be written is kept."""

    def __init__(self, file: Path | None) -> None:
        """`file`: None keeps nothing."""
        self._file = file
        self._pending: dict[tuple[str, str, str], Used] = {}
        self._lock = threading.Lock()
        self._is_failing = False

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._pending)

    def add(self, key: str, model: str, used: Used, now: float) -> None:
        """Note what a request has used."""
        if self._file is not None:
            at = (_day(now), key, model)
            with self._lock:
                self._pending[at] = self._pending.get(at, Used()) + used

    def write(self) -> None:
        """Write what is pending."""
        with self._lock:
            batch, self._pending = self._pending, {}
        if not batch or self._file is None:
            return
        try:
            with _open(self._file) as database, database:
                database.executemany(_ADD, [(*at, *used) for at, used in batch.items()])
            self._is_failing = False
        except sqlite3.Error as error:
            if not self._is_failing:
                log.error("%s cannot be written: %s; trying again", self._file, error)
            self._is_failing = True
            with self._lock:
                for at, used in batch.items():
                    self._pending[at] = self._pending.get(at, Used()) + used


def read_usage(file: Path, since: float) -> list[Row]:
    """Return the lines from the day of `since` on, in order; none before the first. Raises sqlite3.Error."""
    if file.parent.is_dir() and not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=BUSY_S)) as database:
        if database.execute("select 1 from sqlite_master where name = 'usage'").fetchone() is None:
            return []  # its first writer is just making it
        return [Row(d, k, m, Used(*counts)) for d, k, m, *counts in database.execute(_READ, (_day(since),))]


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    # Opened anew each time: that costs less than a millisecond, and nothing is held over a fork or a stop.
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
        database.execute("pragma journal_mode = wal")  # readers never wait
        database.execute("pragma synchronous = normal")
        database.execute(_SCHEMA)
        yield database


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
