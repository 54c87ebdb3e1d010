"""Which sequence holds which of a pool's KV cells; several may hold the same ones. Pure."""

from collections.abc import Iterable


class _Block:
    """Cells that were filled together and are held by the same sequences."""

    __slots__ = ("holders", "length")

    def __init__(self, length: int, holders: int = 1) -> None:
        self.length = length
        self.holders = holders


class Cells:
    """The books of one pool. A sequence's blocks lie in the order of its tokens."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        """Cells that hold a token of anybody."""
        self._blocks: dict[int, list[_Block]] = {}

    @property
    def free(self) -> int:
        """Cells that hold nothing."""
        return self.total - self.used

    def length(self, sequence: int) -> int:
        """Return how many cells a sequence holds."""
        return sum(b.length for b in self._blocks.get(sequence, ()))

    def extend(self, sequence: int, count: int) -> None:
        """Give a sequence new cells at its end."""
        blocks = self._blocks.setdefault(sequence, [])
        if blocks and blocks[-1].holders == 1:
            blocks[-1].length += count
        else:
            blocks.append(_Block(count))
        self.used += count

    def share(self, source: int, target: int, end: int) -> None:
        """Let `target` hold, from its own end on, the cells that `source` holds up to `end`."""
        first, last = self._split(source, self.length(target)), self._split(source, end)
        for block in self._blocks.get(source, [])[first:last]:
            block.holders += 1
            self._blocks.setdefault(target, []).append(block)

    def cut(self, sequence: int, length: int = 0) -> None:
        """Take away what a sequence holds after its first `length` cells."""
        first = self._split(sequence, length)
        blocks = self._blocks.get(sequence, [])
        for block in blocks[first:]:
            block.holders -= 1
            self.used -= block.length if block.holders == 0 else 0
        del blocks[first:]
        if not blocks:
            self._blocks.pop(sequence, None)

    def alone(self, sequence: int) -> int:
        """Return how many cells only this sequence holds."""
        return sum(b.length for b in self._blocks.get(sequence, ()) if b.holders == 1)

    def held(self, sequences: Iterable[int], source: int | None = None, end: int = 0) -> int:
        """Return how many cells these sequences hold together, with the first `end` of `source`."""
        seen = {id(b): b.length for s in sequences for b in self._blocks.get(s, ())}
        for block in self._blocks.get(source, ()) if source is not None else ():
            if end <= 0:
                break
            seen[id(block)] = max(seen.get(id(block), 0), min(block.length, end))
            end -= block.length
        return sum(seen.values())

    def check(self) -> None:
        """Assert that every cell is counted once, and every holder too."""
        blocks = {id(b): b for held in self._blocks.values() for b in held}
        assert self.used == sum(b.length for b in blocks.values()), self.used
        for key, block in blocks.items():
            assert block.length > 0
            assert block.holders == sum(id(b) == key for held in self._blocks.values() for b in held)

    def _split(self, sequence: int, at: int) -> int:
        """Return the index of the block that begins at the sequence's cell `at`, made to begin there."""
        blocks, start = self._blocks.get(sequence, []), 0
        for index, block in enumerate(blocks):
            if start == at:
                return index
            if at < start + block.length:
                tail = _Block(start + block.length - at, block.holders)
                block.length -= tail.length
                for held in self._blocks.values():
                    if block in held:
                        held.insert(held.index(block) + 1, tail)
                return index + 1
            start += block.length
        assert start == at, f"sequence {sequence} holds {start} cells, not {at}"
        return len(blocks)
