"""Stop strings in a stream: text is held back only while it may yet become one. Pure."""

from collections.abc import Sequence


class StopMatcher:
    """Looks for the stop string that ends first; of several that end together, for the longest.

    However the text is cut into pushes, what comes out is the same.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted({s for s in stops if s}, key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing comes out any more."""

    def push(self, text: str) -> str:
        """Take the next text; return what can be shown."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if found:
            end, self.matched = min(found, key=lambda f: f[0])  # on a tie the first, which is the longest
            self._held = ""
            return text[: end - len(self.matched)]
        shown = len(text) - self._longest_beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """Return what was held back: no more text comes, so it is none."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Return the length of the longest end of `text` that is the beginning of a stop string."""
        for length in range(min(len(self._stops[0]) - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0
