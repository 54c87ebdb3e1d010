"""Who has a slot, and what of the pool's cells is promised to whom. Pure."""

from neuron.worker.cells import Cells
from neuron.worker.generation import Generation

GROWTH_CELLS = 32
"""Kept for each sequence beyond what it holds, so that who is let in is not thrown out at once."""
RETURN_CELLS = 512
"""The same for one that was thrown out before."""
REST_S = 5.0
"""Who was thrown out is spared for so long, if there is anybody else."""


class Slots:
    """`parallel` sequences over one pool of cells.

    Promised to a sequence: cells for all its tokens and a growth window, never its max_tokens. Admission keeps the
    promises within the pool; sequences that outgrow theirs are why one may have to go back to the queue.
    """

    def __init__(self, parallel: int, cells: Cells) -> None:
        self.seated: list[Generation] = []
        """In order of arrival."""
        self._parallel = parallel
        self._cells = cells

    @property
    def free(self) -> int:
        """How many more may be seated."""
        return self._parallel - len(self.seated)

    def can_hold(self, generation: Generation) -> bool:
        """Say whether the pool could hold it if it were alone."""
        return len(generation.tokens) + 1 <= self._cells.total

    def can_seat(self, generation: Generation, source: int | None = None, shared: int = 0) -> bool:
        """Say whether it may come in now, with the cells of the first `shared` tokens of sequence `source`."""
        if self.free <= 0 or not self.can_hold(generation):
            return False
        if not self.seated:
            return True
        held = self._cells.held(self.sequences(), source, shared)
        outstanding = sum(self._outstanding(g, g.position) for g in self.seated)
        return held + outstanding + self._outstanding(generation, shared) <= self._cells.total

    def seat(self, generation: Generation, sequence: int) -> None:
        """Give it a sequence."""
        assert generation.sequence is None, generation.key
        generation.sequence = sequence
        self.seated.append(generation)
        self.seated.sort(key=lambda g: g.serial)

    def unseat(self, generation: Generation) -> int:
        """Take its sequence away, and return it."""
        sequence = generation.sequence
        assert sequence is not None
        self.seated.remove(generation)
        generation.sequence, generation.position = None, 0
        generation.leader, generation.pieces = None, []
        return sequence

    def sequences(self) -> list[int]:
        """Return the sequences that are seated."""
        return [g.sequence for g in self.seated if g.sequence is not None]

    def cheapest_to_redo(self, now: float) -> Generation | None:
        """Return whom to send back when cells run out; None if that would help nobody."""
        costs = {g.serial: self._cells.alone(g.sequence) for g in self.seated if g.sequence is not None}
        if len(self.seated) < 2:
            return None
        # Where all share all they hold, one that goes frees nothing, but asks for nothing either.
        holders = [g for g in self.seated if costs[g.serial] > 0] or self.seated
        rested = [g for g in holders if now - g.sent_back_at >= REST_S]
        return min(rested or holders, key=lambda g: (costs[g.serial], -g.serial))

    def _outstanding(self, generation: Generation, position: int) -> int:
        limit = generation.prompt_n + generation.task.max_tokens
        window = RETURN_CELLS if generation.was_sent_back else GROWTH_CELLS
        promised = min(len(generation.tokens) + window, limit, self._cells.total)
        if generation.leader is not None:
            position = max(position, generation.shared_n)  # the leader's own promise covers them
        return max(0, promised - position)
