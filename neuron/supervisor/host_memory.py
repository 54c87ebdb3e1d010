"""What models leave of the host's memory, shared among the workers that run, for their idle conversations."""

from common.messages import ShareHostMemory
from neuron.memory.ledger import HOST
from neuron.supervisor.host import Host
from neuron.supervisor.states import State

ABSENT = frozenset({State.STOPPED, State.IDLE, State.QUARANTINED})
"""Workers that are not there and not about to be back: one that is restarted keeps its share, or the others would be
given it and lose it again at once, with the conversations in it."""


def share_mb(host: Host) -> int:
    """Return what a worker may keep of conversations now, in MiB."""
    left = host.ledger.free_mb(HOST)
    assert left is not None
    most = host.settings.host_cache_mb
    workers = sum(w.state not in ABSENT for w in host.workers.values())
    return (left if most is None else min(left, most)) // max(1, workers)


class HostMemory:
    """Tells each worker its share, and again when that has changed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._told: dict[str, int] = {}
        """By incarnation."""
        self._seen: tuple[int, list[State]] | None = None
        """What the shares were made from: the ledger's changes so far, and each worker's state."""

    def settle(self) -> None:
        """After an event: tell what has changed."""
        host = self._host
        seen = (host.ledger.changes, [w.state for w in host.workers.values()])
        if seen == self._seen:
            return
        self._seen = seen
        ready = {d: w for d, w in host.workers.items() if w.state in (State.READY, State.DRAINING)}
        share = share_mb(host)
        for device, worker in ready.items():
            if self._told.get(worker.incarnation) != share:
                host.tell_worker(device, ShareHostMemory(mb=share))
        self._told = {w.incarnation: share for w in ready.values()}
