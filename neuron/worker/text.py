"""From the bytes of tokens to the text a client sees: whole characters only, and no part of a stop string. Pure."""

import codecs
from collections.abc import Sequence

from neuron.worker.stops import StopMatcher


class TextStream:
    """The text of one answer. Replaying the same pieces restores exactly what was held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        # "replace" acts on bytes that cannot become a character; half a character waits for its other half.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = StopMatcher(stops)

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.matched

    def push(self, piece: bytes) -> str:
        """Take the next token's bytes; return what can be shown."""
        return self._matcher.push(self._decoder.decode(piece))

    def finish(self) -> str:
        """Return what was held back; half a character becomes U+FFFD."""
        shown = self._matcher.push(self._decoder.decode(b"", True))
        return shown + self._matcher.finish()
