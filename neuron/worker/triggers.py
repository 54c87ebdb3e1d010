"""Where a constraint begins: after the first of some texts to appear in the output. Pure."""

from collections.abc import Sequence


class TriggerMatcher:
    """Looks through the bytes of the output for the trigger that ends first."""

    def __init__(self, triggers: Sequence[str]) -> None:
        self._triggers = [t.encode() for t in triggers if t]
        self._kept = max(map(len, self._triggers), default=1) - 1
        self._tail = b""
        """The end of the output, as long as a trigger may have begun in it."""

    def rest(self, piece: bytes) -> bytes | None:
        """Return what follows the trigger that this piece would complete; None if it completes none."""
        text = self._tail + piece
        ends = [text.find(t) + len(t) for t in self._triggers if t in text]
        return text[min(ends) :] if ends else None

    def take(self, piece: bytes) -> None:
        """Count a piece that completes none as output."""
        text = self._tail + piece
        self._tail = text[max(0, len(text) - self._kept) :]
