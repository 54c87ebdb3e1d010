"""The supervisor as a pure state machine: one event in, instructions out.

No clock, socket or pid inside; every outcome comes back as an event. The parts (Placement, Traffic, Admin, the
children) share one Host; this file only says who reacts to what, and in which order.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from common.catalogue import Catalogue
from common.messages import (
    Abort,
    Beat,
    CacheCleared,
    CancelJobs,
    Ended,
    Failed,
    FromPrep,
    FromWorker,
    Hello,
    HelloWanted,
    Inspected,
    InspectFailed,
    Loaded,
    LoadFailed,
    LoadProgress,
    MemoryView,
    NodeState,
    Offer,
    Prepared,
    PrepHello,
    Pulse,
    Rendered,
    Submit,
    ToNeuron,
    Unloaded,
    WorkerHello,
)
from common.messages import Started as JobsStarted
from neuron.discovery import Device, ProbeReading
from neuron.memory.ledger import HOST, Ledger
from neuron.memory.residency import Model
from neuron.settings import NeuronSettings
from neuron.supervisor import events, foreign
from neuron.supervisor.admin import Admin
from neuron.supervisor.child import Child, UndefinedTransition
from neuron.supervisor.departure import Departure
from neuron.supervisor.driver_watch import DriverWatch
from neuron.supervisor.family import Family
from neuron.supervisor.finds import Finds
from neuron.supervisor.herald import Herald
from neuron.supervisor.host import Host
from neuron.supervisor.host_memory import HostMemory
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.instructions import Instruction, Say
from neuron.supervisor.keeper import Keeper
from neuron.supervisor.offers import Offers
from neuron.supervisor.ownership import Ownership
from neuron.supervisor.placement import Placement
from neuron.supervisor.policy import RestartPolicy
from neuron.supervisor.profiles import Profiles
from neuron.supervisor.publisher import Publisher
from neuron.supervisor.reception import Reception
from neuron.supervisor.renewal import Renewal
from neuron.supervisor.states import State
from neuron.supervisor.traffic import Traffic
from neuron.supervisor.upkeep import Upkeep
from neuron.supervisor.watchdog import SWEEP_S, Watchdog
from neuron.supervisor.withdrawal import Withdrawal

PROBE_SILENCE_S = 3.0
"""The probe says a line a second; NVML may hang in the driver."""


class Machine:
    """All decisions of one neuron."""

    def __init__(
        self,
        settings: NeuronSettings,
        devices: Sequence[Device],
        catalogue: Catalogue,
        *,
        new_id: Callable[[], str],
        strict: bool = False,
    ) -> None:
        """`strict`: an undefined transition raises, as tests want it, instead of costing that child its life."""
        policy, watchdog = RestartPolicy.of(settings.restart), settings.watchdog

        def child(role: Literal["worker", "prep", "probe"], name: str, idle_s: float, *, holds: bool = False) -> Child:
            return Child(
                role,
                name,
                policy=policy,
                watchdog=watchdog,
                new_incarnation=new_id,
                idle_limit_s=idle_s,
                holds_device_memory=holds,
            )

        served = [d for d in devices if d.unavailable is None]
        self.host = host = Host(
            settings=settings,
            incarnation=new_id(),
            new_id=new_id,
            devices={d.uuid: d for d in devices},
            workers={d.uuid: child("worker", d.uuid, watchdog.idle_s, holds=d.kind == "cuda") for d in served},
            prep=child("prep", "prep", math.inf),  # judged by the answers it owes, not by silence
            probe=child("probe", "probe", PROBE_SILENCE_S),
            ledger=Ledger({d.uuid: d.for_models_mb for d in devices} | {HOST: settings.host_memory_mb}),
            aliases=catalogue.targets(),
            own_defaults=catalogue.defaults,
            problems={d.uuid: d.unavailable for d in devices if d.unavailable is not None},
        )
        self._inspection = Inspection(host)
        self._placement = Placement(host, self._inspection)
        self._traffic = Traffic(host, self._inspection, self._placement)
        self._renewal = Renewal(host, self._inspection, self._placement)
        self._admin = Admin(host, self._inspection, self._placement, self._renewal)
        self._publisher = Publisher(host)
        self._family = Family(host, self._inspection, self._placement, self._traffic, self._admin)
        self._keeper = Keeper(host, self._inspection, self._placement)
        self._departure = Departure(host, self._family, self._traffic, self._admin, self._keeper)
        self._upkeep = Upkeep(host, self._family)
        self._host_memory = HostMemory(host)
        self._herald = Herald(host, self._admin)
        self._ownership = Ownership(host, self._family, self._placement, self._traffic)
        self._driver = DriverWatch(host, self._family)
        self._finds = Finds(host, self._inspection)
        self._offers = Offers(host, self._inspection, self._placement)
        self._profiles = Profiles(host, self._inspection)
        self._withdrawal = Withdrawal(host, self._traffic)
        self._reception = Reception(host, self._publisher, self._withdrawal, self._placement)
        self._watchdog = Watchdog(host, self._family, self._traffic, self._reception, self._driver)
        self._strict = strict
        for profile in catalogue.models:
            self._inspection.adopt(profile, own=True)

    @property
    def published(self) -> NodeState | None:
        """Return the state that gateways have."""
        return self._publisher.published

    def handle(self, event: events.Event, now: float) -> list[Instruction]:
        """Apply one event at monotonic time `now`; return what is to be done, in order."""
        host = self.host
        host.now, host.out = now, []
        try:
            self._apply(event)
            self._settle()
        except UndefinedTransition as error:
            if self._strict:
                raise
            host.say("error", "undefined transition; killing that child", story=str(error))
            for child in self._family.children():
                if child.story() in str(error):
                    host.out += child.kill_undefined(now)
        self._profiles.settle()
        self._keeper.settle()
        for instruction in host.out:
            if isinstance(instruction, Say):
                host.is_dirty |= host.journal.note(instruction, now)
        self._publisher.settle()
        return host.out

    def _apply(self, event: events.Event) -> None:
        host = self.host
        match event:
            case events.Started(saved, wall_s):
                self._start(self._keeper.restore(saved, wall_s))
            case events.ChildSpawned(incarnation, pid):
                child = self._family.find(incarnation)
                if child is not None:
                    child.pid = pid
                    host.is_dirty = True
            case events.ChildExited():
                child = self._family.find(event.incarnation)
                if child is not None and child.is_alive:
                    self._family.exited(child, event)
            case events.WorkerSaid(incarnation, gateway, message):
                child = self._family.find(incarnation)
                if child is not None and child.role == "worker" and child.is_alive:
                    self._worker_said(child, gateway, message)
            case events.PrepSaid(incarnation, said):
                if incarnation == host.prep.incarnation and host.prep.is_alive:
                    self._prep_said(said)
            case events.ProbeRead(incarnation, reading):
                if incarnation == host.probe.incarnation and host.probe.is_alive:
                    self._probe_read(reading)
            case events.PeerSaid(peer, request):
                self._peer_said(peer, request)
            case events.PeerLost(peer, why):
                self._reception.forget(peer, why)
            case events.SourceResolved():
                if (model := self._inspection.source_resolved(event)) is not None:
                    self._inspection_ended(model)
            case events.ModelsFound(found, disks):
                host.disks = disks
                self._finds.update(found)
                self._offers.tidy()
            case events.SourcesLocated(places):
                self._offers.located(places)
                self._finds.review()
            case events.FetchMoved(source, progress):
                for model in self._inspection.fetch_moved(source, progress):
                    self._placement.fetch_moved(model, progress)
            case events.FetchEnded(source, error):
                for model in self._inspection.fetch_ended(source, error):
                    self._inspection_ended(model)
            case events.CatalogueRead(catalogue):
                self._profiles.replace(catalogue)
                self._finds.apply_defaults()
                self._offers.tidy()
            case events.TimerFired(key):
                self._timer_fired(key)
            case events.Woken(slept_s):
                self._family.wake(slept_s)
            case events.StopAsked():
                self._departure.begin()

    def _start(self, quarantines: dict[str, str]) -> None:
        host = self.host
        for child in self._family.children():
            if child.name in quarantines:
                self._family.happen(child, "condemn", quarantines[child.name])
            elif child.name not in host.paused and (
                child is not host.probe or any(d.kind == "cuda" for d in host.devices.values())
            ):
                self._family.happen(child, "start")
        for model in host.models.values():
            self._inspection.inspect(model, wanted=False)
        for name in host.settings.preload:
            model_id = host.aliases.get(name, name)
            if model_id in host.models:
                self._placement.load_again(host.models[model_id])
            else:
                host.say("error", "cannot preload a model without a profile", model=name,
                         known=", ".join(host.models) or "none")  # fmt: skip
        for uuid, problem in host.problems.items():
            host.say("error", "device is unavailable", device=uuid, why=problem)
        self._offers.tidy()
        host.wake_in("sweep", SWEEP_S)
        self._publisher.start()

    def _worker_said(self, child: Child, gateway: str, message: FromWorker) -> None:
        host, device = self.host, child.name
        if not isinstance(message, Pulse):
            child.note_progress(host.now)
        match message:
            case WorkerHello():
                self._family.greet(child, message)
            case Pulse():
                host.is_dirty |= child.phase != message.phase
                child.note_pulse(host.now, message.steps, message.phase)
                child.tokens = message.tokens
                self._placement.note_loads(device, message.lanes)
                self._traffic.note_step(device, message.steps, message.phase)
            case JobsStarted() | Ended() | Failed():
                if isinstance(message, JobsStarted):
                    child.note_prompts(message.items)
                self._traffic.worker_said(device, gateway, message)
            case LoadProgress():
                self._placement.progressed(device, message)
            case Loaded():
                model = self._placement.loaded(device, message)
                if model is not None:
                    self._traffic.dispatch(model)
            case LoadFailed():
                model = self._placement.load_failed(device, message)
                if model is not None:
                    self._traffic.replica_lost(model)
            case Unloaded():
                model = self._placement.unloaded(device, message)
                if model is not None:
                    self._traffic.replica_lost(self._renewal.renewed(model))
            case MemoryView() | CacheCleared():
                self._admin.worker_answered(device, message)

    def _inspection_ended(self, model: Model) -> None:
        self._placement.inspection_ended(model)
        self._traffic.inspection_ended(model)

    def _prep_said(self, message: FromPrep) -> None:
        host = self.host
        host.prep.note_progress(
            host.now, steps=host.prep.steps + 1 if isinstance(message, Prepared | Rendered | Inspected) else None
        )
        match message:
            case PrepHello():
                self._family.happen(host.prep, "hello")
            case Inspected() | InspectFailed():
                model = self._inspection.inspected(message)
                if model is not None:
                    self._inspection_ended(model)
            case Prepared():
                self._traffic.prepared(message)
            case Rendered():
                for rendered in message.items:
                    self._traffic.rendered(rendered)
            case Failed():
                for item in message.items:
                    self._traffic.preparation_failed(item)

    def _probe_read(self, reading: ProbeReading) -> None:
        host = self.host
        first = host.probe.state is State.STARTING
        host.probe.note_progress(host.now, steps=host.probe.steps + 1)
        if first:
            self._family.happen(host.probe, "hello")
        host.xids.update(event.uuid for event in reading.xids)
        if host.reading != reading:
            host.reading = reading
            host.is_dirty |= bool(reading.devices)
        foreign.note(host, reading)
        self._driver.read(reading)
        self._family.release(reading)

    def _peer_said(self, peer: str, message: ToNeuron) -> None:
        host = self.host
        if isinstance(message, Hello):
            self._reception.greet(peer, message)
            return
        if not host.peers.hear(peer, host.now):
            host.tell(peer, HelloWanted())
            return
        match message:
            case Submit():
                if message.profile is not None and self._inspection.takes(message.profile):
                    self._inspection.adopt(message.profile, own=False)
                self._traffic.submit(peer, message.jobs)
            case Offer():
                self._offers.take(peer, message)
                self._finds.apply_defaults()
            case Abort():
                self._withdrawal.abort(peer, message)
            case Beat():
                self._withdrawal.compare(peer, message)
            case CancelJobs():
                self._withdrawal.cancel(peer, message)
            case _:
                for device, what in self._admin.handle(peer, message):
                    self._family.order(device, what)

    def _timer_fired(self, key: str) -> None:
        host = self.host
        kind, _, rest = key.partition(":")
        if kind == "sweep":
            self._sweep()
            host.wake_in("sweep", SWEEP_S)
        elif kind == "push":
            self._publisher.push_change()
        elif kind == "push-full":
            self._publisher.push_full()
        elif kind == "child":
            self._family.timer_fired(key)
        elif kind == "release":
            self._family.look_for_release()
        elif kind == "backend":
            self._family.retry_backend(rest)
        elif kind == "question":
            self._admin.question_timed_out(rest)
        elif kind == "save":
            self._keeper.save()
        elif kind == "pause":
            self._pause_ended(rest)
        elif kind == "drained":
            self._departure.end_jobs("the drain's time is over")

    def _pause_ended(self, device: str) -> None:
        end = self.host.paused.get(device)
        if end is not None and end <= self.host.now:
            for name, what in self._admin.end_pause(device):
                self._family.order(name, what, "the pause is over")

    def _sweep(self) -> None:
        host = self.host
        self._watchdog.sweep()
        self._traffic.sweep()
        host.is_dirty |= host.inquest.expire(host.now)
        self._upkeep.sweep()
        self._renewal.sweep()
        self._offers.sweep()
        self._ownership.sweep()
        self._herald.sweep()

    def _settle(self) -> None:
        """Finish what waited for the last job: unloads, device drains, the departure of the whole node."""
        host = self.host
        for model, (code, text) in self._placement.wants.advance():
            self._traffic.fail_waiting(model, code, text)
        self._ownership.settle()
        self._renewal.settle()
        self._upkeep.wake()
        self._host_memory.settle()
        for model_id in list(host.leaving):
            self._traffic.settle(host.models[model_id])
        for device in list(host.draining_devices):
            worker = host.workers[device]
            if worker.state is State.DRAINING and not host.jobs.running_on(device):
                self._family.happen(worker, "idle", "drained")
        self._departure.settle()
