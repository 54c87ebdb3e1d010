"""What lies in a model's KV cells: running sequences, and idle ones that new prompts continue from."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from neuron.worker.cells import Cells
from neuron.worker.engine import MemoryKind, Model
from neuron.worker.generation import Generation
from neuron.worker.host_tier import PIECE_TOKENS, HostTier, Piece
from neuron.worker.move_cost import MoveCost
from neuron.worker.prefix_cache import PrefixCache, Resident, shared_length
from neuron.worker.slots import Slots

KEEP_TOKENS = 16
"""A shorter sequence is not worth a place."""
GAIN_TOKENS = 32
"""Fewer tokens are computed sooner than waited for or restored."""
SAVE_AFTER_S = 0.3
"""A worker with nothing to do saves who is idle for so long; an agent's next turn mostly comes sooner."""
LEAVE_AFTER_S = 3.0
"""Beside others who run, an idle sequence goes to host memory after this time. Attention passes over idle cells too,
and by then that has cost about as much as the save does."""
MAKE_WAY_S = 0.1
"""Of sending idle sequences away for one newcomer; those who run wait for it."""
ANSWER_TOKENS = 64
"""As long an answer is counted on."""
TAIL_TOKENS = 8
"""So far before a prompt's end a state is kept that cannot be cut: templates write an answer's first tokens anew."""


class Saved(NamedTuple):
    """A piece that was saved while the model was leaving."""

    tokens: list[int]
    start: int
    data: bytearray


class KvPool:
    """Seats generations on sequences, with as many of their tokens in cells as somebody already computed.

    A sequence number is free, seated, resident (idle, in the cache), or the last one, which is scratch: states are
    saved and restored through it, a piece at a time.
    """

    def __init__(
        self, model: Model, host: HostTier, *, parallel: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cells = Cells(model.kv_tokens)
        self.slots = Slots(parallel, self.cells)
        self.cache = PrefixCache()
        self._model = model
        self._host = host
        self._clock = clock
        self._is_cut = model.kind is MemoryKind.CELLS
        self._free = list(range(model.sequences - 2, -1, -1))
        self._cost = MoveCost()

    # ── coming and going ────────────────────────────────────────────────────────────────────────────────────────────

    def seat(self, generation: Generation, prefill_s: float | None = None, waiting: Sequence[Generation] = ()) -> bool:
        """Give it a sequence and what is known of its tokens, if it may come in; False if not now.

        `prefill_s` is what computing a token takes, None if unknown; `waiting` are those who come in next.
        """
        is_alone = not self.slots.seated and generation.wants_the_same_again
        if is_alone:
            self._vacate()
        elif prefill_s is not None and self._host.is_on and self.slots.free > 0 and len(self.cache):
            self._make_way(generation, prefill_s, waiting)
        source, length = self._longest(generation)
        leader, following = self._leader(generation)
        leads = leader is not None and following >= length + GAIN_TOKENS
        promised = (leader.sequence, following) if leader is not None and leads else (source, length)
        if not self.slots.can_seat(generation, *promised):
            return False
        if (
            source is not None
            and source in self.cache
            and self._is_cut
            and length == len(self.cache.get(source).tokens)
        ):
            self.cache.take(source)
            self.slots.seat(generation, source)
            generation.position = length
        else:
            self.slots.seat(generation, self._number(keep=source))
            self._continue(generation, source, length)
        if leads:
            generation.leader, generation.shared_n = leader, following
            if leader is not None and not self._is_cut:
                leader.stops = sorted({*leader.stops, following})
        elif not is_alone:
            self._look_in_host(generation, prefill_s)
        if not self._is_cut:
            self._plan_stops(generation)
        return True

    def unseat(self, generation: Generation, *, keep: bool) -> None:
        """Take its sequence away; with `keep` what it computed stays for others, or for its own return."""
        tokens = generation.tokens[: generation.position]
        sequence = self.slots.unseat(generation)
        if keep and len(tokens) >= KEEP_TOKENS:
            self._keep(sequence, tokens)
        else:
            self._drop(sequence)

    def gather(self, limit_s: float) -> None:
        """Get on with those whose cells are on their way from a leader or from host memory, for about `limit_s`."""
        began = self._clock()
        for generation in self.slots.seated:
            leader = generation.leader
            if leader is not None and (leader.sequence is None or leader.position >= generation.shared_n):
                generation.leader = None
                source, length = self._longest(generation)
                self._continue(generation, source, length)
                self._look_in_host(generation, None)
            while generation.pieces and self._clock() - began < limit_s:
                self._restore(generation, generation.pieces.pop(0))

    def advance(self, generation: Generation, count: int) -> None:
        """Note that `count` more tokens are in cells, and keep the state where that was planned."""
        assert generation.sequence is not None
        self.cells.extend(generation.sequence, count)
        generation.position += count
        if generation.position in generation.stops:
            generation.stops.remove(generation.position)
            number = self._number()
            if self._copy(generation.sequence, number, 0, generation.position):
                self._keep(number, generation.tokens[: generation.position])
            else:
                self._drop(number)

    # ── making room ─────────────────────────────────────────────────────────────────────────────────────────────────

    def reclaim(self, count: int) -> None:
        """Send idle sequences away until `count` cells are free, the least recently used first."""
        while self.cells.free < count and self._evict_one():
            pass

    def note_refusal(self, count: int) -> bool:
        """Learn that there is no room for `count` tokens, whatever the books say; True: an idle sequence made some."""
        if self._evict_one():
            return True
        if self._model.kind is not MemoryKind.WINDOW:  # whose window cells have books of their own
            self.cells.total = min(self.cells.total, self.cells.used + count - 1)
        return False

    def tidy(self, *, is_busy: bool) -> bool:
        """Save a piece of what is idle, or send away what is saved; False if there is nothing to do now.

        With `is_busy`, when others wait for their next token, only who is about to leave is saved.
        """
        if not self._host.is_on:
            return False
        idle_since = self._clock() - (LEAVE_AFTER_S if is_busy else SAVE_AFTER_S)
        for resident in self.cache:
            if resident.idle_since > idle_since:
                return False  # the others are not idle for longer
            if resident.saved < len(resident.tokens):
                self._save_piece(resident)
                return True
            if is_busy:
                self._evict(resident)
                return True
        return False

    def clear(self) -> int:
        """Forget what belongs to nobody who runs; return how many sequences."""
        count = len(self.cache)
        for resident in self.cache:
            self.cache.take(resident.sequence)
            self._drop(resident.sequence)
        self._host.clear(self._model.state_key)
        return count

    def save_all(self, budget: int) -> list[Saved]:
        """Return what is not in host memory yet, at most `budget` bytes; from the loader's thread, as the last call."""
        saves: list[Saved] = []
        for resident in self.cache:
            while resident.saved < len(resident.tokens) and budget > 0:
                start, end = self._next_piece(resident)
                data = self._model.save(resident.sequence, start, end)
                resident.saved = end if data is not None else len(resident.tokens)
                if data is not None:
                    saves.append(Saved(resident.tokens[:end], start, data))
                    budget -= len(data)
        return saves

    def check(self) -> None:
        """Assert that every sequence has one use, and every cell its holders."""
        seated, idle = self.slots.sequences(), [r.sequence for r in self.cache]
        numbers = sorted([*self._free, *seated, *idle])
        assert numbers == list(range(self._model.sequences - 1)), numbers
        for generation in self.slots.seated:
            assert generation.sequence is not None
            assert self.cells.length(generation.sequence) == generation.position
        for resident in self.cache:
            assert self.cells.length(resident.sequence) == len(resident.tokens)
        self.cells.check()
        assert self.cells.used == self.cells.held([*seated, *idle]) <= self.cells.total

    # ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _longest(self, generation: Generation) -> tuple[int | None, int]:
        """Return whose cells it can continue from, and how far; its last token is always computed."""
        tokens, limit = generation.tokens, len(generation.tokens) - 1
        best: tuple[int | None, int] = (None, 0)
        known = [(r.sequence, r.tokens) for r in self.cache]
        known += [(g.sequence, g.tokens[: g.position]) for g in self.slots.seated if g.sequence is not None]
        for sequence, theirs in known:
            if sequence == generation.sequence:
                continue
            length = min(shared_length(tokens, theirs), limit)
            whole = length == len(theirs)
            if length > best[1] and (whole or self._is_cut or self._model.can_cut(sequence, length)):
                best = sequence, length
        return best

    def _leader(self, generation: Generation) -> tuple[Generation | None, int]:
        """Return who is about to compute the longest part of the same prompt."""
        limit = len(generation.tokens) - (1 if self._is_cut else TAIL_TOKENS)
        best: tuple[Generation | None, int] = (None, 0)
        for other in self.slots.seated:
            if other.leader is None and not other.is_decoding:
                length = min(shared_length(generation.tokens, other.tokens), limit)
                if length > max(best[1], other.position):
                    best = other, length
        return best

    def _look_in_host(self, generation: Generation, prefill_s: float | None) -> None:
        tokens = generation.tokens[:-1]
        pieces, length = self._host.match(self._model.state_key, tokens, whole=not self._is_cut)
        gain = length - generation.position
        if gain >= GAIN_TOKENS and self._cost.pays(gain if self._is_cut else length, gain, prefill_s):
            generation.pieces = [p for p in pieces if p.end > generation.position]

    def _plan_stops(self, generation: Generation) -> None:
        """Keep states where the prompt turns away from another one, and shortly before its end."""
        seen = [r.tokens for r in self.cache] + [g.tokens for g in self.slots.seated if g is not generation]
        forks = max((shared_length(generation.tokens, t) for t in seen), default=0)
        end = generation.prompt_n - TAIL_TOKENS
        wanted = {s for s in (forks, end) if generation.position + KEEP_TOKENS <= s <= end}
        generation.stops = sorted({*generation.stops, *wanted})

    # ── moving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _number(self, keep: int | None = None) -> int:
        """Return a free sequence, if need be that of the least recently used resident other than `keep`."""
        if not self._free:
            self._evict(next(r for r in self.cache if r.sequence != keep))
        return self._free.pop()

    def _continue(self, generation: Generation, source: int | None, length: int) -> None:
        """Go on from the first `length` tokens of `source`."""
        assert generation.sequence is not None
        if source is None or length <= generation.position:
            return
        if source in self.cache:
            self.cache.touch(source, self._clock())
        if not self._is_cut:
            self._empty(generation)
        if self._copy(source, generation.sequence, generation.position, length):
            generation.position = length
        else:
            self._empty(generation)

    def _copy(self, source: int, target: int, start: int, end: int) -> bool:
        if not self._model.share(source, target, start, end):
            return False
        self.cells.share(source, target, end)
        return True

    def _restore(self, generation: Generation, piece: Piece) -> None:
        """Bring one piece back; a refusal is a miss."""
        assert generation.sequence is not None
        if not self._is_cut:
            self._empty(generation)
        start = generation.position
        end = piece.start + shared_length(piece.tokens, generation.tokens[piece.start : -1])
        self.reclaim(len(piece.tokens))
        began = self._clock()
        has_room = self.cells.free >= len(piece.tokens)
        if not has_room or not self._model.restore(generation.sequence, piece.data, start, end):
            generation.pieces.clear()
            return
        self._cost.restored(self._clock() - began, len(piece.tokens))
        self.cells.extend(generation.sequence, end - start)
        generation.position = end

    def _keep(self, sequence: int, tokens: list[int]) -> None:
        """Make a resident of a sequence, unless another one holds all of it; drop those of which it holds all."""
        for other in self.cache:
            common = shared_length(other.tokens, tokens)
            if common == len(tokens) and (self._is_cut or len(other.tokens) == common):
                self.cache.touch(other.sequence, self._clock())
                self._drop(sequence)
                return
            if common == len(other.tokens) and self._is_cut:
                self.cache.take(other.sequence)
                self._drop(other.sequence)
        self.cache.add(Resident(sequence, tokens, self._clock(), self._saved(tokens)))

    def _saved(self, tokens: list[int]) -> int:
        """Return how many of the first tokens need not be saved again."""
        _, saved = self._host.match(self._model.state_key, tokens, whole=not self._is_cut)
        if saved == len(tokens):
            return saved
        return saved // PIECE_TOKENS * PIECE_TOKENS if self._is_cut else 0

    def _next_piece(self, resident: Resident) -> tuple[int, int]:
        """Return start and end of what is to be saved next."""
        length = len(resident.tokens)
        return (resident.saved, min(length, resident.saved + PIECE_TOKENS)) if self._is_cut else (0, length)

    def _save_piece(self, resident: Resident) -> None:
        start, end = self._next_piece(resident)
        began = self._clock()
        data = self._model.save(resident.sequence, start, end)
        self._cost.saved(self._clock() - began, end - start)
        key, tokens = self._model.state_key, resident.tokens[:end]
        is_kept = data is not None and self._host.add(key, tokens, start, data, whole=not self._is_cut)
        resident.saved = end if is_kept else len(resident.tokens)  # what is refused once would be refused again

    def _evict_one(self) -> bool:
        """Send away the least recently used resident that holds a cell no running sequence holds."""
        seated = self.slots.sequences()
        held = self.cells.held(seated)
        for resident in self.cache:
            if self.cells.held([*seated, resident.sequence]) > held:
                self._evict(resident)
                return True
        return False

    def _vacate(self) -> None:
        """Send everybody idle away: in other cells, or continued from what another batch computed, the same prompt
        gives other last bits, and after some tokens another text.
        """
        for resident in self.cache:
            self._evict(resident)

    def _make_way(self, generation: Generation, prefill_s: float, waiting: Sequence[Generation]) -> None:
        """Send idle sequences away that would cost the newcomer more than they cost to move.

        Attention passes over everybody's cells, up to the last one in use, with each of its tokens. They have to go
        before it comes: later it would lie behind the cells that they leave, and attention would pass over those.
        """
        source, length = self._longest(generation)
        answer = min(generation.task.max_tokens - generation.output_n, ANSWER_TOKENS)
        cell_s = prefill_s * self._model.attention_share * (generation.pending - length + answer)
        if cell_s <= self._cost.both_ways(prefill_s):
            return
        wanted = {source, *(self._longest(g)[0] for g in waiting)}
        until = self._clock() + MAKE_WAY_S
        for resident in self.cache:
            if resident.sequence not in wanted and self._clock() < until:
                self._evict(resident)

    def _evict(self, resident: Resident) -> None:
        resident.saved = self._saved(resident.tokens)  # host memory may have let go of what it had
        while self._host.is_on and resident.saved < len(resident.tokens):
            self._save_piece(resident)
        self.cache.take(resident.sequence)
        self._drop(resident.sequence)

    def _empty(self, generation: Generation) -> None:
        assert generation.sequence is not None
        self._model.forget(generation.sequence)
        self.cells.cut(generation.sequence)
        generation.position = 0

    def _drop(self, sequence: int) -> None:
        self._model.forget(sequence)
        self.cells.cut(sequence)
        self._free.append(sequence)
