"""Who has a slot, and the KV cells that all slots share. Pure."""

from neuron.worker.generation import Generation

GROWTH_CELLS = 32
"""Kept for each sequence beyond what it holds, so that who is let in is not thrown out at once."""


class Slots:
    """`parallel` sequences over one pool of cells.

    Held by a sequence: its position. Promised to it: all its tokens and a growth window. Admission keeps the promises
    within the pool; sequences that outgrow theirs are why one may have to go back to the queue.
    """

    def __init__(self, parallel: int, cells: int) -> None:
        self.cells = cells
        self.seated: list[Generation] = []
        """In order of arrival."""
        self._parallel = parallel
        self._free = list(range(parallel - 1, -1, -1))

    @property
    def used(self) -> int:
        """Cells that hold a token."""
        return sum(g.position for g in self.seated)

    def can_hold(self, generation: Generation) -> bool:
        """Say whether the pool could hold it if it were alone."""
        return len(generation.tokens) + 1 <= self.cells

    def can_seat(self, generation: Generation) -> bool:
        """Say whether it may come in now."""
        if not self._free or not self.can_hold(generation):
            return False
        if not self.seated:
            return True
        return sum(map(self._promised, self.seated)) + self._promised(generation) <= self.cells

    def seat(self, generation: Generation) -> None:
        """Give it a sequence."""
        assert generation.sequence is None, generation.key
        generation.sequence = self._free.pop()
        self.seated.append(generation)
        self.seated.sort(key=lambda g: g.serial)

    def unseat(self, generation: Generation) -> int:
        """Take its sequence and cells away; return the sequence, which the engine has to forget."""
        sequence = generation.sequence
        assert sequence is not None
        self.seated.remove(generation)
        self._free.append(sequence)
        generation.sequence, generation.position = None, 0
        return sequence

    def cheapest_to_redo(self) -> Generation | None:
        """Return whom to send back when cells run out; None if that would help nobody."""
        holders = [g for g in self.seated if g.position > 0]
        if len(self.seated) < 2 or not holders:
            return None
        return min(holders, key=lambda g: (g.position, -g.serial))

    def note_refusal(self, tokens: int) -> None:
        """Learn that the pool does not have room for `tokens` more, whatever it promised."""
        self.cells = min(self.cells, self.used + tokens - 1)

    def check(self) -> None:
        """Assert that every sequence is free or held once."""
        held = [g.sequence for g in self.seated]
        assert sorted([*self._free, *(s for s in held if s is not None)]) == list(range(self._parallel)), held

    def _promised(self, generation: Generation) -> int:
        limit = generation.prompt_n + generation.task.max_tokens
        return max(generation.position, min(len(generation.tokens) + GROWTH_CELLS, limit, self.cells))
