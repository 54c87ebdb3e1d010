"""The supervisor's children: moves each through its life, and has the other parts react to what that means."""

from dataclasses import replace

from common.errors import Code
from common.messages import Done, Refused, WorkerHello
from neuron.discovery import ProbeReading, worker_backend_problem
from neuron.supervisor import events
from neuron.supervisor.admin import Admin
from neuron.supervisor.child import Child, Happening
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.instructions import Instruction, Nudge, Spawn
from neuron.supervisor.placement import Placement
from neuron.supervisor.states import State
from neuron.supervisor.traffic import Traffic

BACKEND_RETRY_S = 10.0
"""A worker without its GPU is tried again after this time: the driver may still be coming up after the boot."""
BACKEND_RETRIES_S = 120.0
RELEASE_LOOK_S = 0.1
"""Between readings of the probe while a dead worker's memory is waited for: its second would be a pause of a stream."""


class Family:
    """Workers, prep and probe."""

    def __init__(
        self, host: Host, inspection: Inspection, placement: Placement, traffic: Traffic, admin: Admin
    ) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement
        self._traffic = traffic
        self._admin = admin
        self._problem_since: dict[str, float] = {}

    def children(self) -> list[Child]:
        """Return the workers, prep and the probe."""
        return [*self._host.workers.values(), self._host.prep, self._host.probe]

    def find(self, incarnation: str) -> Child | None:
        """Return the child whose present life this is; news of an earlier life are late and dropped."""
        return next((c for c in self.children() if c.incarnation == incarnation), None)

    def exited(self, child: Child, event: events.ChildExited) -> None:
        """Take the end of a child's process."""
        host = self._host
        if child.role != "worker":
            self.happen(child, "exited", event.cause)
            return
        device = child.name
        child.note_progress(host.now, steps=max(child.steps, event.steps))
        child.lacks_engine = event.lacks_engine
        instructions, outcome = child.handle("exited", host.now, detail=event.cause)
        host.is_dirty = True
        # Before a new worker is spawned: its jobs end, its models wait for it.
        is_fault = outcome == "died" and not event.is_outside and not child.is_condemned
        self._traffic.worker_died(device, event.cause, event.named if is_fault else ())
        culprit = self._placement.worker_died(device, event.cause, is_fault=is_fault)
        if culprit is not None:
            self._traffic.replica_lost(culprit)
        host.hellos.pop(device, None)
        host.say("info" if outcome == "ended" else "warning", "worker ended", device=device, cause=event.cause)
        self._carry_out(instructions)
        if child.state is State.RELEASING:
            self.look_for_release()
        if child.state in (State.QUARANTINED, State.STOPPED) and not host.is_regrouping(device):
            self._worker_stays_down(child)

    def _carry_out(self, instructions: list[Instruction]) -> None:
        """Pass instructions on; a worker is told which devices it owns."""
        host = self._host
        host.out += [
            replace(i, devices=tuple(host.members(i.name))) if isinstance(i, Spawn) and i.role == "worker" else i
            for i in instructions
        ]

    def happen(self, child: Child, what: Happening, detail: str = "") -> None:
        """Move a child on, and let the parts react to what that means."""
        instructions, outcome = child.handle(what, self._host.now, detail=detail)
        host = self._host
        host.is_dirty = True
        if what == "exited" and child.role == "prep":
            host.say("warning" if outcome == "died" else "info", "prep ended", cause=detail)
            self._traffic.prep_died()
        self._carry_out(instructions)
        if child.role == "worker":
            if outcome == "stuck":
                self._traffic.worker_died(child.name, "it cannot be killed", ())
                self._worker_stays_down(child)
            elif outcome == "came-up":
                self._worker_came_up(child)
            elif child.state in (State.QUARANTINED, State.STOPPED) and not host.is_regrouping(child.name):
                self._worker_stays_down(child)
        elif child.role == "prep" and outcome == "came-up":
            self._inspection.prep_came_up()
            self._traffic.prep_came_up()

    def _worker_came_up(self, child: Child) -> None:
        self._placement.worker_came_up(child.name)
        for peer, request in self._admin.restarts.pop(child.name, []):
            self._host.tell(peer, Done(request=request, text=f"{child.name} has a new worker, pid {child.pid}"))

    def order(self, device: str, what: Happening, detail: str = "") -> None:
        """Carry out what an admin asks for a device whose worker may own others too."""
        host = self._host
        if what == "restart" and not host.is_regrouping(device):
            self.happen(host.worker(device), what, detail)
        elif len(host.members(host.owner(device))) == 1 and not host.is_regrouping(device):
            self.happen(host.workers[device], what, detail)
        # Else a drain parts the team, and an undrain has the change of owners start the device's worker.

    def stay_down(self, devices: list[str]) -> None:
        """Take leave of devices that have got no new worker."""
        for device in devices:
            self._worker_stays_down(self._host.workers[device])

    def part(self, devices: list[str]) -> None:
        """Take away what can no longer lie where it does, after a change of owners."""
        host = self._host
        for model, replica in host.residents(*devices):
            is_split = host.must_regroup(replica.devices)
            if is_split or host.replica(model, host.owner(replica.device)) is not replica:
                self._placement.give_back(model, replica)
                self._traffic.replica_lost(model)

    def _worker_stays_down(self, child: Child) -> None:
        host = self._host
        others = [d for d in host.members(child.name) if d != child.name]
        if others and not host.stopping:
            for device in (child.name, *others):
                host.owners.pop(device, None)
            for device in others:
                self.happen(host.workers[device], "start", f"{child.name} does not serve")
        lost = self._placement.park(child.name)
        if child.state is State.QUARANTINED or child.is_stuck:
            for model in lost:
                self._placement.move(model)
        for model in lost:
            self._traffic.replica_lost(model)
        for peer, request in self._admin.device_drains.pop(child.name, []):
            host.tell(peer, Done(request=request, text=f"{child.name} is drained, its worker has ended"))
        for peer, request in self._admin.restarts.pop(child.name, []):
            why = host.why_not(child.name) or "its worker was stopped"
            host.tell(peer, Refused(request=request, code=Code.DEVICE_UNAVAILABLE, message=f"{child.name}: {why}"))

    def greet(self, child: Child, hello: WorkerHello) -> None:
        """Accept a worker that owns its device; a GPU worker without a GPU never serves, and never from the CPU."""
        host = self._host
        problem = worker_backend_problem([host.devices[d] for d in host.members(child.name)], hello)
        if problem is None:
            if self._problem_since.pop(child.name, None) is not None:
                host.problems.pop(child.name, None)
            host.hellos[child.name] = hello
            self.happen(child, "hello")
            return
        since = self._problem_since.setdefault(child.name, host.now)
        if child.name not in host.problems:
            host.say("error", "device is unavailable", device=child.name, why=problem)
        host.problems[child.name] = problem
        self.happen(child, "stop", problem)
        if host.now - since < BACKEND_RETRIES_S:
            host.wake_in(f"backend:{child.name}", BACKEND_RETRY_S)

    def _is_memory_free(self, uuid: str, reading: ProbeReading) -> bool:
        """Say whether a reading from after the worker's end shows its memory released."""
        device = next((g for g in reading.devices if g.uuid == self._host.devices[uuid].visible), None)
        if device is None:
            return False
        return self._host.workers[uuid].pid not in device.processes

    def release(self, reading: ProbeReading) -> None:
        """Let go on the workers whose dead predecessor's memory a reading shows to be free."""
        for uuid, worker in self._host.workers.items():
            if worker.state is State.RELEASING and self._is_memory_free(uuid, reading):
                self.happen(worker, "memory-free")

    def look_for_release(self) -> None:
        """Have the probe look now and again whether a dead worker's memory is free, until it is."""
        host = self._host
        if any(w.state is State.RELEASING for w in host.workers.values()):
            if host.probe.is_alive:
                host.out.append(Nudge(host.probe.incarnation))
            host.wake_in("release", RELEASE_LOOK_S)

    def wake(self, slept_s: float) -> None:
        """After a sleep of the host: probe the GPUs anew, and serve with no process that has slept on one."""
        host = self._host
        because = f"the host has slept for {slept_s:.0f} s"
        host.say("warning", because)
        host.reading = None
        gpus = [w for d, w in host.workers.items() if host.devices[d].kind == "cuda"]
        for child in [host.probe, *gpus]:
            if child.is_alive:
                self.happen(child, "restart", because)

    def timer_fired(self, key: str) -> None:
        """Move the child on whose timer this is; one that was set for an earlier state is void."""
        child = next(c for c in self.children() if c.timer == key)
        if child.state in (State.KILLING, State.RELEASING, State.BACKOFF, State.QUARANTINED):
            self.happen(child, "timer")

    def retry_backend(self, device: str) -> None:
        """Try a worker again that came up without its GPU."""
        if self._host.workers[device].state is State.STOPPED and device in self._host.problems:
            self.happen(self._host.workers[device], "start")
