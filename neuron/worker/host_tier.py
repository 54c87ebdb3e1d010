"""The second tier of the prefix cache: pieces of sequences in host memory, shared by all models of a worker. Pure."""

from neuron.worker.prefix_cache import shared_length

PIECE_TOKENS = 256
"""Cells saved or restored at once. On a CPU saving the demo model's takes 6 ms where they lie side by side, and half a
millisecond for each that does not, as those of tokens that were decoded beside other sequences."""


class Piece:
    """The state of consecutive tokens, valid after the tokens of the pieces above it."""

    __slots__ = ("children", "data", "parent", "start", "tokens", "used_at")

    def __init__(self, parent: "Piece | None", start: int, tokens: list[int], data: bytearray) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.data = data
        self.children: list[Piece] = []
        self.used_at = 0

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


class HostTier:
    """A tree of pieces for each model key, so that a shared prefix is kept once. The budget is in bytes.

    A key names everything that the bytes depend on: file, KV types, layout. Pieces survive the model's unloading.
    """

    def __init__(self, budget: int = 0) -> None:
        self.used = 0
        self.budget = budget
        self._roots: dict[str, Piece] = {}
        self._time = 0

    @property
    def is_on(self) -> bool:
        """Whether there is a budget at all."""
        return self.budget > 0

    def resize(self, budget: int) -> None:
        """Change the budget."""
        self.budget = budget
        self._shrink()

    def match(self, key: str, tokens: list[int], *, whole: bool = False) -> tuple[list[Piece], int]:
        """Return the pieces of the longest known prefix, and its length; of the last piece a part may match.

        With `whole` the answer is one piece that matches in its full length, or none.
        """
        self._time += 1
        node, at, found = self._roots.get(key), 0, []
        while node is not None:
            best, length = None, 0
            for child in node.children:
                matching = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
                if matching > length and not (whole and matching < len(child.tokens)):
                    best, length = child, matching
            if best is not None:
                found.append(best)
                best.used_at = self._time
            at += length
            node = best if best is not None and length == len(best.tokens) and not whole else None
        return found, at

    def add(self, key: str, tokens: list[int], start: int, data: bytearray, *, whole: bool = False) -> bool:
        """Keep the state of tokens[start:]; False where the pieces before it are not here, or there is no room.

        `whole`: it is of use in its full length only, so a longer one does not replace it.
        """
        above, length = self.match(key, tokens[:start]) if start else ([], 0)
        if length < start or (above and above[-1].end != start) or len(data) > self.budget:
            return False
        parent = above[-1] if above else self._roots.setdefault(key, Piece(None, 0, [], bytearray()))
        piece = Piece(parent, start, tokens[start:], data)
        for sibling in list(parent.children):
            matching = shared_length(sibling.tokens, piece.tokens)
            if matching == len(piece.tokens) and (not whole or len(sibling.tokens) == matching):
                sibling.used_at = self._time
                return True
            if matching == len(sibling.tokens) and not whole:
                self._remove(sibling)  # a last piece that has grown; it has nothing below it, or it would be full
        piece.used_at = self._time
        parent.children.append(piece)
        self.used += len(data)
        self._shrink()
        return True

    def clear(self, key: str | None = None) -> None:
        """Forget a model's pieces, or all."""
        for name in [key] if key is not None else list(self._roots):
            root = self._roots.pop(name, None)
            self.used -= sum(len(p.data) for p in _below(root)) if root is not None else 0

    def used_by(self, key: str) -> int:
        """Return the bytes of a model's pieces."""
        root = self._roots.get(key)
        return sum(len(p.data) for p in _below(root)) if root is not None else 0

    def check(self) -> None:
        """Assert that every byte is counted and within the budget."""
        pieces = [p for root in self._roots.values() for p in _below(root)]
        assert self.used == sum(len(p.data) for p in pieces) <= max(self.budget, 0), self.used

    def _shrink(self) -> None:
        while self.used > self.budget:
            leaves = (p for root in self._roots.values() for p in _below(root) if not p.children)
            self._remove(min(leaves, key=lambda p: p.used_at))

    def _remove(self, piece: Piece) -> None:
        assert piece.parent is not None
        piece.parent.children.remove(piece)
        self.used -= len(piece.data)


def _below(root: Piece) -> list[Piece]:
    found, rest = [], list(root.children)
    while rest:
        piece = rest.pop()
        found.append(piece)
        rest += piece.children
    return found
