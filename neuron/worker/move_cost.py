"""What it costs to send tokens to host memory and to bring them back, learned from the moves themselves. Pure."""

from neuron.worker.host_tier import PIECE_TOKENS

MOST_DEAR = 8.0
"""A restore that took longer than so many prefills says something of the host, not of the next restore."""
PASSED_OVER = 0.8
"""What restoring is thought to cost shrinks by this each time that keeps it from being tried, or one slow restore would
be the last one ever."""
FIRST_GUESS = 0.01
"""A token's way to host memory and back, as a share of computing it, until one was measured."""


class MoveCost:
    """Seconds a token takes, each way, over the last few hundred of them."""

    def __init__(self) -> None:
        self._save_s: float | None = None
        self._restore_s: float | None = None

    def saved(self, seconds: float, tokens: int) -> None:
        """Learn from a piece that was saved."""
        self._save_s = _average(self._save_s, seconds, tokens)

    def restored(self, seconds: float, tokens: int) -> None:
        """Learn from a piece that was restored."""
        self._restore_s = _average(self._restore_s, seconds, tokens)

    def pays(self, tokens: int, gain: int, prefill_s: float | None) -> bool:
        """Say whether to restore `tokens` rather than compute `gain`, of which each takes `prefill_s`."""
        if prefill_s is None or self._restore_s is None or self._restore_s * tokens <= gain * prefill_s:
            return True
        self._restore_s = min(self._restore_s, MOST_DEAR * prefill_s) * PASSED_OVER
        return False

    def both_ways(self, prefill_s: float) -> float:
        """Return the seconds a token takes to leave and to come back."""
        if self._save_s is None or self._restore_s is None:
            return FIRST_GUESS * prefill_s
        return self._save_s + min(self._restore_s, MOST_DEAR * prefill_s)


def _average(known: float | None, seconds: float, tokens: int) -> float:
    """A conversation's last piece is short, and its cells lie apart, so it weighs less."""
    token_s = seconds / tokens
    return token_s if known is None else known + (token_s - known) * min(1.0, tokens / (2 * PIECE_TOKENS))
