"""Who has said Hello, and when each was last heard. Pure."""

from dataclasses import dataclass
from typing import Literal

LEASE_S = 5.0
"""A gateway that is silent for longer has its jobs aborted: ROUTER never tells that a peer is gone."""
ADMIN_LEASE_S = 600.0
"""An admin sends no beats; it is forgotten so that the table stays small."""


@dataclass(slots=True)
class Peer:
    """A gateway process, or one run of neuronctl."""

    incarnation: str
    role: Literal["gateway", "admin"]
    name: str
    heard_at: float
    """Monotonic seconds."""


class Peers:
    """All peers that have said Hello and are not lost."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def greet(self, incarnation: str, role: Literal["gateway", "admin"], name: str, now: float) -> None:
        """Record a Hello."""
        self._peers[incarnation] = Peer(incarnation, role, name, now)

    def hear(self, incarnation: str, now: float) -> bool:
        """Record a message; False if this peer never said Hello."""
        peer = self._peers.get(incarnation)
        if peer is None:
            return False
        peer.heard_at = now
        return True

    def forget(self, incarnation: str) -> Peer | None:
        """Strike a peer out and return it."""
        return self._peers.pop(incarnation, None)

    def gateways(self) -> list[str]:
        """Return the incarnations of all gateways."""
        return [p.incarnation for p in self._peers.values() if p.role == "gateway"]

    def forgive(self, seconds: float) -> None:
        """Take so much off everybody's silence."""
        for peer in self._peers.values():
            peer.heard_at += seconds

    def silent(self, now: float) -> list[Peer]:
        """Return the peers whose lease has run out."""
        lease = {"gateway": LEASE_S, "admin": ADMIN_LEASE_S}
        return [p for p in self._peers.values() if now - p.heard_at > lease[p.role]]
