"""What goes into the next batch: all decode tokens, then prompt chunks as long as the time allows. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from neuron.worker.engine import CHUNK_TOKENS, Chunk
from neuron.worker.generation import Generation

FIRST_CHUNK = 64
"""Prompt tokens of a timed step while the model's speed is not known."""
MIN_CHUNK = 8
"""A prompt always gets on, also where one token alone takes longer than the budget."""
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


def plan(seated: Sequence[Generation], free_cells: int, chunk_tokens: int) -> Plan | None:
    """Return the next batch, None if it would be empty, or if not even the decode tokens have cells.

    Prompts are served in order of arrival; what the first one leaves of `chunk_tokens` is the next one's.
    """
    owners = [g for g in seated if g.is_decoding]
    decodes = len(owners)
    room = min(chunk_tokens, CHUNK_TOKENS - decodes, free_cells - decodes)
    if room < 0 or not seated:
        return None
    chunks = [_chunk(g, 1) for g in owners]
    for generation in seated:
        if room == 0:
            break
        if not generation.is_decoding:
            length = min(generation.pending, room)
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
    """How long this model takes for what, learned from the steps themselves.

    A prompt token costs a + b × position seconds, since attention looks back at all that is before it; a and b come
    from least squares over the recent steps, older ones fading.
    """

    def __init__(self) -> None:
        self._decode_s: float | None = None
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

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
        x = sum((c.position + len(c.tokens) / 2) * len(c.tokens) for c in prompts) / tokens
        y = seconds / tokens
        # Short chunks are dear for what they are, and say little about long ones.
        weight = min(1.0, tokens / FIRST_CHUNK)
        fade = 1.0 - (1.0 - _FORGET) * weight
        self._weight = self._weight * fade + weight
        self._x = self._x * fade + weight * x
        self._y = self._y * fade + weight * y
        self._xx = self._xx * fade + weight * x * x
        self._xy = self._xy * fade + weight * x * y

    def token_s(self, position: int) -> float | None:
        """Return the seconds a prompt token at `position` takes; None if nothing is known."""
        if self._weight == 0.0:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - x * x
        # From chunks that all lie close together no slope can be told from noise.
        slope = (self._xy / self._weight - x * y) / spread if spread > CHUNK_TOKENS**2 / 4 else 0.0
        return max(y + max(slope, 0.0) * (position - x), y / 4)

    def chunk(self, position: int, budget_s: float, *, decodes: bool) -> int:
        """Return how many prompt tokens at `position` fit a step of `budget_s`, beside decode tokens or not."""
        token_s = self.token_s(position)
        if token_s is None:
            return FIRST_CHUNK
        left_s = budget_s - (self._decode_s or 0.0) if decodes else budget_s
        return max(MIN_CHUNK, min(CHUNK_TOKENS, int(left_s / token_s)))
