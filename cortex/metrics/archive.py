"""The files that gateway processes count in, and what becomes of those of a process that has ended.

A process counts in files of its own. When it is gone, what they hold is added to one archive and they are removed, so
sums never fall and files do not pile up. A scrape holds a shared lock meanwhile, folding an exclusive one; folding
never waits for it, since the arbiter has other things to do, but tries again at its next turn.
"""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

_KINDS = ("counter", "histogram")
_merge: Any = MultiProcessCollector.merge  # untyped there
_map: Any = MmapedDict


def read(folder: Path) -> Iterable[Metric]:
    """Return what all processes have counted, dead ones included."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        merged: Iterable[Metric] = _merge([str(f) for f in _filled(folder.glob("*.db"))], accumulate=True)
        return merged


class Archive:
    """The arbiter's side: buries processes that have ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dead: set[int] = set()

    def bury(self, pid: int) -> None:
        """Have a process's counts folded into the archive, which may happen a little later."""
        self._dead.add(pid)

    def fold(self) -> None:
        """Fold in the counts of the dead, unless somebody reads just now."""
        if not self._dead:
            return
        with self._exclusive() as is_ours:
            if not is_ours:
                return
            for kind in _KINDS:
                self._fold_kind(kind)
            self._dead.clear()

    def _fold_kind(self, kind: str) -> None:
        archive, fresh = self._folder / f"{kind}_archive.db", self._folder / f"{kind}_archive.new"
        dead = [f for f in (self._folder / f"{kind}_{pid}.db" for pid in self._dead) if f.exists()]
        if not dead:
            return
        metrics: Iterable[Metric] = _merge([str(f) for f in _filled([archive, *dead])], accumulate=False)
        fresh.unlink(missing_ok=True)
        target = _map(str(fresh))
        for metric in metrics:
            for sample in metric.samples:
                names, values = list(sample.labels), list(sample.labels.values())
                key = mmap_key(metric.name, sample.name, names, values, metric.documentation)
                target.write_value(key, sample.value, 0.0)
        target.close()
        fresh.replace(archive)
        for file in dead:
            file.unlink()

    @contextmanager
    def _exclusive(self) -> Iterator[bool]:
        with (self._folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _filled(files: Iterable[Path]) -> list[Path]:
    """Leave out files that do not exist, or that their process has only just made and not yet given a size."""
    return [f for f in files if f.exists() and f.stat().st_size]
