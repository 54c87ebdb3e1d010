"""One model's queue, shared fairly. Pure.

A free slot goes to the jobs of the lowest priority number; among their principals to the one with the fewest running
jobs, among equals to the one that was served least recently; within a principal likewise to a conversation; within a
conversation to the job that came first. So nobody is starved by equals: who has fewer running jobs than others is
before them, and among equals everybody's turn comes. Jobs of a higher priority number may be starved.
"""

from collections import Counter
from typing import Generic, Protocol, TypeVar

from common.messages import Job


class Queued(Protocol):
    """What waits."""

    @property
    def serial(self) -> int:
        """Rises with each acceptance."""

    @property
    def job(self) -> Job:
        """The job itself."""


E = TypeVar("E", bound=Queued)


def conversation(job: Job) -> str:
    """Return what tells the conversations of one principal apart: all that follow the same beginning are one.

    The first link of a prefix chain is tools and system prompt, which a program's conversations share.
    """
    return (job.prefix_chain[:2] or [job.group or job.id])[-1]


class FairQueue(Generic[E]):
    """Waiting and running jobs of one model."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, dict[int, E]]] = {}
        """By principal and conversation, then by serial number."""
        self._running: Counter[tuple[str, ...]] = Counter()
        """By (principal,) and by (principal, conversation)."""
        self._served_at: dict[tuple[str, ...], int] = {}
        self._turn = 0

    def __bool__(self) -> bool:
        """Whether anything is waiting or running."""
        return bool(self._lines or self._running)

    def add(self, entry: E) -> None:
        """Let a job wait."""
        line = self._lines.setdefault(entry.job.principal, {}).setdefault(conversation(entry.job), {})
        line[entry.serial] = entry

    def discard(self, entry: E) -> None:
        """Let a job wait no longer; nothing happens if it does not."""
        principal, talk = entry.job.principal, conversation(entry.job)
        lines = self._lines.get(principal, {})
        if lines.get(talk, {}).pop(entry.serial, None) is None:
            return
        if not lines[talk]:
            del lines[talk]
            self._forget((principal, talk))
        if not lines:
            del self._lines[principal]
            self._forget((principal,))

    def begin(self, entry: E) -> None:
        """Count a job that got its slot."""
        self._turn += 1
        for share in self._shares(entry):
            self._running[share] += 1
            self._served_at[share] = self._turn
        self.discard(entry)

    def end(self, entry: E) -> None:
        """Count a job that gave its slot back."""
        for share in self._shares(entry):
            self._running[share] -= 1
            if not self._running[share]:
                del self._running[share]
            self._forget(share)

    def _shares(self, entry: E) -> tuple[tuple[str, ...], tuple[str, ...]]:
        principal = entry.job.principal
        return (principal,), (principal, conversation(entry.job))

    def _forget(self, share: tuple[str, ...]) -> None:
        lines = self._lines.get(share[0], {})
        if share not in self._running and not (lines if len(share) == 1 else share[1] in lines):
            self._served_at.pop(share, None)

    def next(self, until: int | None = None) -> E | None:
        """Return the job whose turn it is; `until`: among those with at most this serial number."""
        best: tuple[tuple[int, ...], E] | None = None
        for principal, lines in self._lines.items():
            firsts = {talk: line[min(line)] for talk, line in lines.items()}
            ready = [t for t, e in firsts.items() if until is None or e.serial <= until]
            if not ready:
                continue
            talk = min(ready, key=lambda t: (firsts[t].job.priority, *self._rank((principal, t), firsts[t].serial)))
            entry = firsts[talk]
            key = (entry.job.priority, *self._rank((principal,), entry.serial))
            if best is None or key < best[0]:
                best = key, entry
        return None if best is None else best[1]

    def _rank(self, share: tuple[str, ...], serial: int) -> tuple[int, int, int]:
        return self._running.get(share, 0), self._served_at.get(share, 0), serial

    def waiting(self) -> list[E]:
        """Return all waiting jobs, in the order of acceptance."""
        entries = [e for lines in self._lines.values() for line in lines.values() for e in line.values()]
        return sorted(entries, key=lambda e: e.serial)
