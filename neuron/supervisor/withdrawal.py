"""Jobs that are taken back: by the gateway that sent them, by its silence, by an admin."""

from common.errors import Code
from common.messages import Abort, Beat, CancelJobs, Done, Failed, Refused
from neuron.broker.failures import lost_job
from neuron.supervisor.host import Host
from neuron.supervisor.traffic import Traffic

LEAST_PREFIX = 4
"""Characters of a job's id that name it to an admin."""


class Withdrawal:
    """Ends jobs before their time."""

    def __init__(self, host: Host, traffic: Traffic) -> None:
        self._host = host
        self._traffic = traffic

    def abort(self, peer: str, message: Abort) -> None:
        """Carry out a gateway's Abort; idempotent."""
        for key in message.jobs:
            entry = self._host.jobs.find_of(peer, key.job)
            if entry is not None and entry.job.attempt <= key.attempt:
                self._traffic.abort(entry)

    def abort_all(self, peer: str) -> int:
        """Abort all jobs of a gateway that is gone; return how many."""
        entries = self._host.jobs.of_gateway(peer)
        for entry in entries:
            self._traffic.abort(entry)
        return len(entries)

    def compare(self, peer: str, message: Beat) -> None:
        """Settle differences between the gateway's list of live jobs and the book."""
        listed = {key.job: key.attempt for key in message.jobs}
        for entry in self._host.jobs.of_gateway(peer):
            if listed.get(entry.job.id) != entry.job.attempt:
                self._traffic.abort(entry)
        lost = [k for k in message.jobs if self._host.jobs.find_of(peer, k.job) is None]
        if lost:
            # Its end, or its Submit, went under in a broken connection, or has crossed this Beat.
            self._host.tell(peer, Failed(items=[lost_job(key) for key in lost]))

    def cancel(self, peer: str, message: CancelJobs) -> None:
        """End a request's jobs for an admin: their client gets an error, and no other attempt is made."""
        host, target = self._host, message.target
        jobs = host.jobs.entries()
        found = [e for e in jobs if target and target in (e.job.request_id, e.job.id)]
        if not found and len(target) >= LEAST_PREFIX:
            found = [e for e in jobs if e.job.id.startswith(target)]
        if not found:
            text = f"no job or request '{target}' runs or waits here"
            host.tell(peer, Refused(request=message.request, code=Code.NOT_FOUND, message=text))
            return
        for entry in found:
            self._traffic.cut(entry, Code.ABORTED, "the request was cancelled by an administrator")
        request = found[0].job.request_id
        host.say("warning", "request cancelled", request_id=request, jobs=len(found), why="an admin")
        host.tell(peer, Done(request=message.request, text=f"{len(found)} jobs of {request} cancelled"))
