"""The arbiter's side of the rows: which place among them a gateway process gets."""

from collections.abc import Iterable
from pathlib import Path

from cortex.access.meter import ROWS
from cortex.access.rows import Rows

SPARE = 4
"""Places for processes that end while those in their stead have begun."""


class Seats:
    """To be made before the fork."""

    def __init__(self, processes: int, file: Path | None) -> None:
        self.rows = Rows(processes + SPARE, ROWS, file)
        self.next_place = 0
        """Of the process that is begun next."""

    def choose(self, taken: Iterable[int]) -> None:
        """Choose the next place among those that no running process has."""
        free = set(range(self.rows.places)) - set(taken)
        # More processes than places, by gunicorn's signals: two of them then share one, and either may lose a count.
        self.next_place = min(free, default=self.rows.places - 1)
