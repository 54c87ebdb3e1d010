"""Who has been silent for too long, peers and children; unless it was this process that did not listen."""

from neuron.supervisor.driver_watch import DriverWatch
from neuron.supervisor.family import Family
from neuron.supervisor.host import Host
from neuron.supervisor.reception import Reception
from neuron.supervisor.states import State
from neuron.supervisor.traffic import Traffic

SWEEP_S = 0.25
"""Between two looks."""
ABSENCE_S = 1.0
"""A look that comes so late says that this process did not run meanwhile."""


class Watchdog:
    """Judges silences, a few times a second."""

    def __init__(self, host: Host, family: Family, traffic: Traffic, reception: Reception, driver: DriverWatch) -> None:
        self._host = host
        self._family = family
        self._traffic = traffic
        self._reception = reception
        self._driver = driver
        self._swept_at: float | None = None

    def sweep(self) -> None:
        """Take leave of peers and end children that have said nothing for longer than they may."""
        host = self._host
        self._forgive_own_absence()
        for peer in host.peers.silent(host.now):
            self._reception.forget(peer.incarnation, f"silent for {host.now - peer.heard_at:.1f} s")
        for child in self._family.children():
            silence = child.stalled_for(host.now)
            if silence is not None:
                self._family.happen(child, "stalled", f"no progress for {silence:.1f} s in phase {child.phase}")
                if child is host.probe:
                    self._driver.fall_silent()
        if host.prep.state is State.READY and self._traffic.is_prep_stalled():
            self._family.happen(host.prep, "stalled", "it owes an answer for too long")

    def _forgive_own_absence(self) -> None:
        """Hold no silence against others that was this process's own: it was stopped, or its loop was blocked."""
        late_s = self._host.now - self._swept_at - SWEEP_S if self._swept_at is not None else 0.0
        self._swept_at = self._host.now
        if late_s > ABSENCE_S:
            self._host.say("warning", f"this process stood still for {late_s:.1f} s")
            self._host.peers.forgive(late_s)
            for child in self._family.children():
                child.seen_at += late_s
