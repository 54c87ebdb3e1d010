"""How this neuron stops: it takes nothing new, lets its jobs end or ends them, and its children after them."""

from common.errors import Code
from common.messages import Done
from neuron.supervisor.admin import Admin
from neuron.supervisor.family import Family
from neuron.supervisor.host import Host
from neuron.supervisor.instructions import Exit, Kill
from neuron.supervisor.keeper import Keeper
from neuron.supervisor.states import State
from neuron.supervisor.traffic import Traffic


class Departure:
    """Carries out a stop, and the drain of the whole node that an admin asks for."""

    def __init__(self, host: Host, family: Family, traffic: Traffic, admin: Admin, keeper: Keeper) -> None:
        self._host = host
        self._family = family
        self._traffic = traffic
        self._admin = admin
        self._keeper = keeper

    def begin(self) -> None:
        """Stop once the running jobs have ended or the drain's time is over; asked again, stop at once."""
        host = self._host
        if host.stopping:
            self.end_jobs("asked twice")
            for child in self._family.children():
                if child.is_alive:
                    host.out.append(Kill(child.incarnation, hard=True))
            return
        self._keeper.save()
        host.stopping = host.is_dirty = True
        host.say("info", "stopping", jobs=len(host.jobs), drain_s=host.settings.drain_s)
        if len(host.jobs):
            host.wake_in("drained", host.settings.drain_s)

    def end_jobs(self, why: str) -> None:
        """Fail what still runs or waits, retriable: another neuron may take it."""
        if len(self._host.jobs):
            self._host.say("warning", "ending jobs that still run", jobs=len(self._host.jobs), because=why)
            self._traffic.fail_all(Code.SHUTTING_DOWN, "this neuron is being stopped")

    def settle(self) -> None:
        """After an event: if no job is left, answer who drains the node, and end the children of one that stops."""
        host = self._host
        if len(host.jobs):
            return
        if host.draining and self._admin.node_drains:
            for peer, request in self._admin.node_drains:
                host.tell(peer, Done(request=request, text="the node is drained"))
            self._admin.node_drains.clear()
        if host.stopping:
            self._end_children()

    def _end_children(self) -> None:
        children = self._family.children()
        for child in children:
            if child.state not in (State.STOPPED, State.KILLING, State.RELEASING):
                self._family.happen(child, "stop", "the neuron is stopping")
        if not any(c.is_alive and not c.is_stuck for c in children):
            self._host.out.append(Exit(0))
