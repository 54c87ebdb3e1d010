"""Idle sequences that stay in a model's cells, for new prompts to continue from. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

_STRIDE = 256
"""Tokens compared at once."""


def shared_length(a: list[int], b: list[int]) -> int:
    """Return the length of the longest common prefix."""
    limit, at = min(len(a), len(b)), 0
    while at < limit and a[at : at + _STRIDE] == b[at : at + _STRIDE]:
        at += _STRIDE
    while at < limit and a[at] == b[at]:
        at += 1
    return min(at, limit)


@dataclass(slots=True, eq=False)
class Resident:
    """A sequence nobody runs."""

    sequence: int
    tokens: list[int]
    """One for each cell."""
    idle_since: float
    saved: int = 0
    """So many of its first tokens are in host memory too."""


class PrefixCache:
    """The residents, least recently used first."""

    def __init__(self) -> None:
        self._residents: dict[int, Resident] = {}

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._residents.values()))

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._residents

    def add(self, resident: Resident) -> None:
        """Take one in, as the most recently used."""
        assert resident.sequence not in self._residents
        self._residents[resident.sequence] = resident

    def take(self, sequence: int) -> Resident:
        """Let one go."""
        return self._residents.pop(sequence)

    def touch(self, sequence: int, now: float) -> None:
        """Note that one was continued from."""
        resident = self._residents.pop(sequence)
        resident.idle_since = now
        self._residents[sequence] = resident

    def get(self, sequence: int) -> Resident:
        """Return one."""
        return self._residents[sequence]
