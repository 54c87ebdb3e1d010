"""Holds each reading of the probe against the last one, and does what the table of driver.py says."""

from neuron.discovery import ProbeReading
from neuron.supervisor import driver
from neuron.supervisor.driver import Judgement
from neuron.supervisor.family import Family
from neuron.supervisor.host import Host
from neuron.supervisor.states import State


class DriverWatch:
    """What the driver has said so far."""

    def __init__(self, host: Host, family: Family) -> None:
        self._host = host
        self._family = family
        self._seen: set[str] = set()
        """GPUs that the last good reading listed."""
        self._sick: dict[str, tuple[str, str]] = {}
        """By device that is to be left alone: whose worker still owns it, and why."""

    def read(self, reading: ProbeReading) -> None:
        """Take a reading: events, GPUs that are gone, and whether NVML answers at all."""
        host = self._host
        self._part()
        for event in reading.xids:
            self._act(event.uuid, driver.judge(event.xid), f"Xid {event.xid}: ")
        is_failure = reading.error is not None or (reading.driver is None and not reading.devices)
        if is_failure and self._seen:
            self._note_host(driver.judge_failure(reading.error or driver.MUTE))
            return
        listed = {g.uuid for g in reading.devices}
        for uuid in sorted(self._seen - listed):
            self._act(uuid, driver.LOST)
        self._seen = listed
        if host.driver_problem is not None and listed:
            host.say("info", "the driver answers again")
            host.driver_problem = None
            host.is_dirty = True

    def fall_silent(self) -> None:
        """Take that the probe says nothing: what it said before is not known any more, and never 0."""
        self._host.reading = None
        self._note_host(driver.SILENT)

    def _note_host(self, judgement: Judgement) -> None:
        host = self._host
        if host.driver_problem != judgement.text:
            host.driver_problem = judgement.text
            host.is_dirty = True
            host.say("error", "the driver fails", scope=judgement.scope, why=judgement.text)

    def _act(self, gpu: str, judgement: Judgement, what: str = "") -> None:
        """Do what the table says to the device, or to each that has a share of this GPU."""
        host = self._host
        reason = what + judgement.text
        for uuid in [d for d in host.workers if host.devices[d].visible == gpu]:
            host.say("warning", "driver event", device=uuid, scope=judgement.scope, action=judgement.action, why=reason)
            worker = host.worker(uuid)
            if judgement.action == "quarantine" and worker.state is not State.STOPPED:
                if worker.name != uuid:
                    self._sick[uuid] = worker.name, reason
                self._family.happen(worker, "condemn", reason)
            elif judgement.action == "renew" and worker.is_alive:
                self._family.happen(worker, "restart", reason)
        self._part()

    def _part(self) -> None:
        """Leave the sick one of several devices alone as soon as they have workers of their own, and take the other."""
        host = self._host
        for uuid, (owner, reason) in list(self._sick.items()):
            if host.owner(uuid) == uuid:
                del self._sick[uuid]
                self._family.happen(host.workers[uuid], "condemn", reason)
                if host.workers[owner].state is State.QUARANTINED:
                    self._family.happen(host.workers[owner], "restart", f"{uuid} was the sick one")
