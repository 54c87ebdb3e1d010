"""How many connections each address has to this gateway process."""

from collections import Counter
from collections.abc import Iterable


class Peers:
    """Bounds the connections of all addresses together, and of each that is no proxy of ours."""

    def __init__(self, most: int, most_per_address: int, proxies: Iterable[str]) -> None:
        """`proxies`: addresses for which many clients speak."""
        self._most = most
        self._most_per_address = most_per_address
        self._proxies = frozenset(proxies)
        self._count: Counter[str] = Counter()
        self._total = 0

    def enter(self, address: str) -> str | None:
        """Count a connection, or return why there may be no more."""
        if self._total >= self._most:
            return f"this gateway process has {self._most} connections, which is its limit"
        if self._count[address] >= self._most_per_address and address not in self._proxies:
            return f"there are {self._most_per_address} connections of {address}, which is the limit"
        self._count[address] += 1
        self._total += 1
        return None

    def leave(self, address: str) -> None:
        """Count a connection that was let in and is gone."""
        self._total -= 1
        self._count[address] -= 1
        if not self._count[address]:
            del self._count[address]
