"""Tells admins who wait for a load, an unload or a drain what it waits for. How far a load is, placement tells."""

from collections.abc import Iterable, Iterator

from common.messages import Progress
from neuron.memory.residency import Model, Replica, Want
from neuron.supervisor.admin import Admin
from neuron.supervisor.host import Host

Waiter = tuple[str, str]
"""(peer, request)."""


class Herald:
    """Says each thing once, and again when it has changed."""

    def __init__(self, host: Host, admin: Admin) -> None:
        self._host = host
        self._admin = admin
        self._said: dict[Waiter, str] = {}

    def sweep(self) -> None:
        """Tell what has changed since the last time."""
        now = {waiter: text for waiters, text in self._waits() for waiter in waiters}
        for (peer, request), text in now.items():
            if self._said.get((peer, request)) != text:
                self._host.tell(peer, Progress(request=request, text=text))
        self._said = now

    def _waits(self) -> Iterator[tuple[Iterable[Waiter], str]]:
        host = self._host
        for want in host.wants.values():
            if want.waiters:
                yield want.waiters, self._room(want)
        for model in host.models.values():
            for replica in model.replicas.values():
                if replica.waiters and (replica.leaving or replica.status == "unloading"):
                    yield replica.waiters, self._unload(model, replica)
        for device, waiters in self._admin.device_drains.items():
            running = sum(len(host.jobs.running_on(d)) for d in host.members(host.owner(device)))
            yield waiters, f"draining {device}: {_jobs(running)} still to end"
        if self._admin.node_drains:
            yield self._admin.node_drains, f"draining the node: {_jobs(len(host.jobs))} still to end"

    def _room(self, want: Want) -> str:
        host = self._host
        if not want.at:
            return f"{want.model} waits for room: the others are loading, or have not served yet"
        going = [(m, r) for m, r in host.residents(*want.at) if r.makes_room_for == want.model]
        place, names = "+".join(want.at), ", ".join(m.id for m, _ in going)
        running = sum(r.running for _, r in going)
        if running:
            return f"{want.model} waits for room on {place}: {names} still to end {_jobs(running)}"
        if going:
            return f"{want.model} waits for room on {place}: {names} being unloaded"
        return (
            f"{want.model} waits for {place}: {_jobs(sum(len(host.jobs.running_on(d)) for d in want.at))} still to end"
        )

    def _unload(self, model: Model, replica: Replica) -> str:
        if replica.status == "unloading":
            return f"unloading {model.id} from {replica.place}"
        return f"unloading {model.id} from {replica.place}: {_jobs(replica.running)} still to end"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
