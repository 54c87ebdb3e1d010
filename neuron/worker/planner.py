"""What goes into the next batch: all decode tokens, then prompt chunks as long as the time allows. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from neuron.worker.engine import CHUNK_TOKENS, Chunk
from neuron.worker.generation import Generation

FIRST_CHUNK = 16
"""Prompt tokens of a step beside running sequences while the speed is not known."""
MIN_CHUNK = 8
"""A prompt always gets on, also where one token alone takes longer than the budget."""
OUTLIER = 2.0
"""A step that took more than so many times what was expected says something of the host, not of the model."""
LEAST_SPREAD = 64
"""Of positions in tokens, below which no slope can be told from noise."""
_FORGET = 0.8
"""Weight of the past with each new measurement."""


class Plan(NamedTuple):
    """One batch: chunks and whose they are, side by side."""

    owners: list[Generation]
    chunks: list[Chunk]
    decodes: int
    """The first so many chunks are single tokens of running sequences."""

    @property
    def prefills(self) -> int:
        """Prompt tokens in the batch."""
        return sum(len(c.tokens) for c in self.chunks[self.decodes :])


def plan(seated: Sequence[Generation], free_cells: int, chunk_tokens: int, rows: int = CHUNK_TOKENS) -> Plan | None:
    """Return the next batch of `rows` at most, None if it would be empty, or if not even the decode tokens have cells.

    Prompts are served in order of arrival; what the first one leaves of `chunk_tokens` is the next one's.
    """
    owners = [g for g in seated if g.is_decoding]
    decodes = len(owners)
    room = min(chunk_tokens, rows - decodes, free_cells - decodes)
    if room < 0 or not seated:
        return None
    chunks = [_chunk(g, 1) for g in owners]
    for generation in seated:
        if room == 0:
            break
        if not generation.is_decoding:
            length = min(generation.next_stop - generation.position, room)
            room -= length
            owners.append(generation)
            chunks.append(_chunk(generation, length))
    return Plan(owners, chunks, decodes) if chunks else None


def _chunk(generation: Generation, length: int) -> Chunk:
    assert generation.sequence is not None
    start = generation.position
    end = start + length
    return Chunk(generation.sequence, start, generation.tokens[start:end], end == len(generation.tokens))


class Pace:
    """How long this model takes for what, learned from the steps themselves."""

    def __init__(self, rows: int = CHUNK_TOKENS) -> None:
        """`rows`: of one batch at most."""
        self._rows = rows
        self._decode_s: float | None = None
        self._prompt = _Fit()

    def observe(self, plan: Plan, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        tokens = plan.prefills
        if tokens == 0:
            self._decode_s = seconds if self._decode_s is None else 0.7 * self._decode_s + 0.3 * seconds
            return
        if plan.decodes:
            # Never more than half: an estimate from before the others' contexts grew must not make prompts look free.
            seconds -= min(self._decode_s or 0.0, seconds / 2)
        prompts = plan.chunks[plan.decodes :]
        position = sum((c.position + len(c.tokens) / 2) * len(c.tokens) for c in prompts) / tokens
        # Short chunks are dear for what they are, and say little about long ones.
        self._prompt.add(position, seconds / tokens, min(1.0, tokens / FIRST_CHUNK))

    def token_s(self, position: int) -> float | None:
        """Return the seconds a prompt token takes at a position; None if that is not known yet."""
        return self._prompt.at(position)

    def chunk(self, position: int, budget_s: float, decodes: int) -> int:
        """Return how many prompt tokens fit a step of `budget_s` beside `decodes` decode tokens.

        `position` is the first one's.
        """
        token_s = self._prompt.at(position)
        if token_s is None:
            return FIRST_CHUNK
        decode_s = (self._decode_s or 0.0) if decodes else 0.0
        return max(MIN_CHUNK, min(self._rows, int((budget_s - decode_s) / token_s)))


class _Fit:
    """What a prompt token costs at a position: a + b × position seconds, since attention looks back at all before it.

    a and b come from least squares over the recent steps, older ones fading.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float, weight: float) -> None:
        """Learn that a token at position `x` took `y` seconds."""
        known = self.at(x)
        if known is not None:
            y = min(y, OUTLIER * known)
        fade = 1.0 - (1.0 - _FORGET) * weight
        self._weight = self._weight * fade + weight
        self._x = self._x * fade + weight * x
        self._y = self._y * fade + weight * y
        self._xx = self._xx * fade + weight * x * x
        self._xy = self._xy * fade + weight * x * y

    def at(self, position: float) -> float | None:
        """Return the seconds a token at `position` takes; None if nothing is known."""
        if self._weight == 0.0:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - x * x
        slope = (self._xy / self._weight - x * y) / spread if spread > LEAST_SPREAD**2 else 0.0
        return max(y + max(slope, 0.0) * (position - x), y / 4)
