"""Which prompts have left their KV with a replica, as far as their gateways' hashes tell. Pure.

A hint for choosing a replica, nothing more: what is really shared is found token by token in the worker.
"""

from collections import OrderedDict
from collections.abc import Sequence

SEQUENCES = 64
"""Conversations remembered of a replica."""
TAIL = 4
"""Hashes remembered of a conversation: its next prompt holds the last one, an edited one may still hold an earlier."""


class Prefixes:
    """The conversations of one replica, the latest last."""

    def __init__(self) -> None:
        self._tails: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        """By their last hash."""

    def add(self, chain: Sequence[str]) -> None:
        """Remember a prompt by its chain of hashes; the one that it continues is replaced."""
        if not chain:
            return
        for link in chain:
            self._tails.pop(link, None)
        self._tails[chain[-1]] = tuple(chain[-TAIL:])
        while len(self._tails) > SEQUENCES:
            self._tails.popitem(last=False)

    def match(self, chain: Sequence[str]) -> int:
        """Return how many links of a chain are resident.

        0 for none or only the first, what many conversations begin with: it would draw all of them to one replica.
        """
        known = {link for tail in self._tails.values() for link in tail}
        return next((n for n in range(len(chain), 1, -1) if chain[n - 1] in known), 0)

    def links(self) -> list[str]:
        """Return all hashes, those of the latest conversation last."""
        return [link for tail in self._tails.values() for link in tail]

    def clear(self) -> None:
        """Forget everything: the worker is gone."""
        self._tails.clear()
