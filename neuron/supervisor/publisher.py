"""Pushes the host's state to every gateway: what has changed soon after it has, the whole of it now and then."""

from msgspec import structs

from common.messages import NodeState
from neuron.supervisor import report
from neuron.supervisor.host import Host

PUSH_S = 0.05
"""Partial states are not pushed more often."""
PUSH_DELAY_S = 0.01
"""Between a change and its push: making the state must not delay the message that changed it."""
FULL_PUSH_S = 10.0


class Publisher:
    """Keeps what was published last, so that a push carries the difference."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._published: NodeState | None = None
        self._pushed_at = 0.0
        self._is_due = False
        self._told = 0
        """Number of the last event that gateways were told of."""

    @property
    def published(self) -> NodeState | None:
        """Return what was published last."""
        return self._published

    def start(self) -> None:
        """Begin to push whole states."""
        self._host.wake_in("push-full", FULL_PUSH_S)

    def settle(self) -> None:
        """After an event: see to it that a change is pushed soon."""
        host = self._host
        if host.is_dirty and not self._is_due:
            self._is_due = True
            host.wake_in("push", max(PUSH_DELAY_S, self._pushed_at + PUSH_S - host.now))

    def push_change(self) -> None:
        """Push what has changed since the last push."""
        self._is_due = False
        self._update()

    def push_full(self) -> None:
        """Push the whole state."""
        state = self._whole()
        for peer in self._host.peers.gateways():
            self._host.tell(peer, state)
        self._host.wake_in("push-full", FULL_PUSH_S)

    def introduce(self, peer: str) -> None:
        """Send a peer that is not yet among the gateways the whole state, which later changes follow."""
        self._host.tell(peer, self._whole())

    def _whole(self) -> NodeState:
        """Return the whole state, told to every gateway that has the one before, and what has happened lately."""
        host = self._host
        return structs.replace(self._update(), events=host.journal.latest(host.now))

    def _update(self) -> NodeState:
        """Bring the published state up to date, telling every gateway the difference; return the whole."""
        host, before = self._host, self._published
        host.is_dirty, self._pushed_at = False, host.now
        if before is None:
            self._published, self._told = report.node_state(host, 1), host.journal.cursor
            return self._published
        after = report.node_state(host, before.seq + 1)
        change = report.change(before, after, host.journal.since(self._told, host.now))
        self._told = host.journal.cursor
        if change is None:
            return before
        for peer in host.peers.gateways():
            host.tell(peer, change)
        self._published = after
        return after
