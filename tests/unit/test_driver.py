"""What the driver tells, and what follows; with an NVML that says what a test wants."""

import os
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from common.messages import Failed, Health, HealthReply, NodeState, RestartWorker
from neuron import probe as probe_module
from neuron.discovery import Gpu, ProbeReading, Xid
from neuron.probe import Probe
from neuron.settings import NeuronSettings, RestartSettings
from neuron.supervisor import events
from neuron.supervisor.driver import XIDS, judge
from neuron.supervisor.states import State
from tests.support.drive import Drive, cpu, gpu, job, profile

A, B = "GPU-a", "GPU-b"


class FakeNvml:
    """Stands in for pynvml: two GPUs, and whatever a test does to them."""

    def __init__(self) -> None:
        self.gpus = [A, B]
        self.lost: set[str] = set()
        self.events: list[SimpleNamespace] = []
        self.failure: Exception | None = None
        self.computing = [os.getpid()]

    def __getattr__(self, name: str) -> Any:
        """Return the real constants and errors, and functions that give nothing special."""
        real = getattr(pynvml, name)
        if not name.startswith("nvml") or not callable(real):
            return real
        return lambda *_: 0

    def nvmlInit(self) -> None:
        if self.failure is not None:
            raise self.failure

    def nvmlDeviceGetCount(self) -> int:
        if self.failure is not None:
            raise self.failure
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if self.gpus[index] in self.lost:
            raise pynvml.NVMLError_GpuIsLost()
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "RTX"

    def nvmlDeviceGetPciInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(busId=handle)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=2000 << 20, used=100 << 20)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> None:
        raise pynvml.NVMLError_NotSupported()

    def nvmlDeviceGetMigMode(self, handle: str) -> None:
        raise pynvml.NVMLError_NotSupported()

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=100 << 20) for pid in self.computing]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=os.getppid(), usedGpuMemory=300 << 20)]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580"

    def nvmlEventSetWait_v2(self, _events: object, _timeout: int) -> SimpleNamespace:
        if not self.events:
            raise pynvml.NVMLError_Timeout()
        return self.events.pop(0)

    def happen(self, gpu: str, xid: int, kind: int = pynvml.nvmlEventTypeXidCriticalError) -> None:
        self.events.append(SimpleNamespace(device=gpu, eventType=kind, eventData=xid))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(probe_module, "pynvml", fake)
    monkeypatch.setattr(probe_module, "find_pci_gpus", lambda: ["0000:01:00.0", "0000:02:00.0"])
    return fake


def test_the_probe_reads_events_and_gives_ecc_errors_their_xid(nvml: FakeNvml) -> None:
    probe = Probe()
    nvml.happen(A, 13)
    nvml.happen(B, 0, pynvml.nvmlEventTypeDoubleBitEccError)
    reading = probe.read()
    assert [g.uuid for g in reading.devices] == [A, B]
    assert (reading.devices[0].processes, reading.devices[0].are_strangers) == (
        {os.getpid(): 100, os.getppid(): 300},
        False,
    )
    nvml.computing = [2**22 + 1]  # no pid of this host's
    assert probe.read().devices[0].are_strangers
    assert reading.xids == [Xid(A, 13), Xid(B, 48)]
    assert probe.read().xids == []


def test_a_gpu_that_is_gone_from_the_bus_hides_no_other(nvml: FakeNvml) -> None:
    nvml.lost = {A}
    assert [g.uuid for g in Probe().read().devices] == [B]


def test_an_nvml_that_fails_gives_an_error_and_is_opened_anew(nvml: FakeNvml) -> None:
    probe = Probe()
    nvml.failure = pynvml.NVMLError_LibRmVersionMismatch()
    assert "reboot" in (probe.read().error or "")
    nvml.failure = None
    assert len(probe.read().devices) == 2


def two_gpus(**restart: Any) -> Drive:
    settings = NeuronSettings(name="test", preload=["m"], restart=RestartSettings(**restart))
    drive = Drive(devices=[gpu(A), gpu(B)], settings=settings).start().connect()
    drive.probe_reads(A, B)
    return drive


def state(drive: Drive, device: str) -> State:
    return drive.machine.host.workers[device].state


def holder(drive: Drive) -> str:
    [device] = drive.machine.host.models["m"].replicas
    return device


def test_the_table_knows_the_scopes() -> None:
    assert {j.scope for j in XIDS.values()} == {"request", "device"}
    assert judge(31).scope == "request"
    assert judge(79).action == "quarantine"
    assert judge(9999).action == "note"
    assert all(j.text for j in XIDS.values())


@pytest.mark.parametrize("xid", [x for x, j in XIDS.items() if j.action == "quarantine"])
def test_a_device_event_quarantines_the_gpu_and_its_model_and_jobs_move(xid: int) -> None:
    drive = two_gpus(cool_down_s=60.0)
    drive.submit(job("j"))
    sick = holder(drive)
    drive.probe_reads(A, B, xids=[Xid(sick, xid)])
    assert [i.code for m in drive.told_of(Failed) for i in m.items] == ["worker_died"]
    assert [i.strikes for m in drive.told_of(Failed) for i in m.items] == [0]
    drive.probe_reads(A, B)
    assert state(drive, sick) is State.QUARANTINED
    assert f"Xid {xid}" in (drive.machine.host.why_not(sick) or "")
    assert holder(drive) != sick
    drive.submit(job("j", attempt=2))
    assert drive.tasks["j"][0] == holder(drive)
    drive.check()
    drive.pass_time(61.0)
    assert state(drive, sick) is State.READY, "the cool-down's one try"


def test_a_request_event_leaves_the_device_alone_and_the_death_that_follows_is_judged() -> None:
    drive = two_gpus()
    drive.submit(job("j"))
    device = holder(drive)
    drive.probe_reads(A, B, xids=[Xid(device, 31)])
    assert state(drive, device) is State.READY
    drive.die(device, "status 70", named=["j"], steps=1)
    assert [i.strikes for m in drive.told_of(Failed) for i in m.items] == [1]


def test_an_event_of_the_process_alone_renews_the_worker() -> None:
    drive = two_gpus()
    device = holder(drive)
    before = drive.incarnation(device)
    drive.probe_reads(A, B, xids=[Xid(device, 94)])
    drive.probe_reads(A, B)
    assert state(drive, device) is State.READY
    assert drive.incarnation(device) != before


def test_a_gpu_that_is_listed_no_more_is_quarantined_and_the_other_serves() -> None:
    drive = two_gpus()
    lost = holder(drive)
    other = next(d for d in (A, B) if d != lost)
    drive.probe_reads(other)
    drive.pass_time(21.0)  # nothing says any more that its memory is free
    assert state(drive, lost) is State.QUARANTINED
    assert "fallen off the bus" in (drive.machine.host.why_not(lost) or "")
    assert holder(drive) == other
    assert state(drive, other) is State.READY


def test_a_driver_that_fails_or_is_silent_is_said_and_costs_no_stream() -> None:
    drive = two_gpus()
    drive.submit(job("j"))
    drive.probe_reads(error="NVML fails: unknown error")
    drive.peer_says(Health(request="h"))
    [reply] = drive.told_of(HealthReply)
    assert (reply.status, reply.reasons) == ("impaired", ["NVML fails: unknown error"])
    drive.probe_reads(A, B)
    assert drive.machine.host.driver_problem is None
    drive.pass_time(4.0)
    assert "silent" in (drive.machine.host.driver_problem or "")
    assert drive.machine.host.reading is None
    drive.finish("j")
    assert drive.ends() == {"j": "ended"}


def test_memory_that_stays_after_a_death_keeps_the_device_waiting_and_then_out_of_service() -> None:
    drive = two_gpus()
    device = holder(drive)
    pid = drive.machine.host.workers[device].pid
    drive.die(device, "signal SIGSEGV", steps=1)
    assert drive.nudges == 1
    assert pid is not None
    reading = ProbeReading(devices=[Gpu(uuid=device, name="RTX", pci="x", index=0, processes={pid: 100})])
    drive.feed(events.ProbeRead(drive.incarnation("probe"), reading))
    assert state(drive, device) is State.RELEASING
    asked = drive.nudges
    drive.pass_time(0.55)
    assert drive.nudges == asked + 5, "until it is free, in less than the probe's own second"
    drive.pass_time(21.0)
    assert state(drive, device) is State.QUARANTINED
    assert "memory was not released" in (drive.machine.host.why_not(device) or "")


def test_a_worker_that_no_signal_ends_loses_its_device_and_nothing_else() -> None:
    drive = Drive(devices=[cpu("CPU-0"), cpu("CPU-1")], models=[profile("m")]).start().connect()
    drive.submit(job("j"))
    device = holder(drive)
    drive.unkillable = {device}
    drive.peer_says(RestartWorker(request="r", device=device))
    drive.pass_time(3.0)
    assert drive.told_of(Failed) == []
    drive.pass_time(5.0)
    assert [i.code for m in drive.told_of(Failed) for i in m.items] == ["worker_died"]
    assert "cannot be killed" in (drive.machine.host.why_not(device) or "")
    assert holder(drive) != device, "nothing is placed there, and its model is loaded on the other"
    drive.submit(job("j", attempt=2))
    drive.finish("j")
    drive.pass_time(0.2)
    [stuck] = [d for s in drive.told_of(NodeState) for d in s.devices if d.uuid == device][-1:]
    assert "cannot be killed" in (stuck.reason or "")
    drive.check()
    drive.die(device, "signal SIGKILL")
    drive.unkillable = set()
    assert state(drive, device) is State.READY
    drive.feed(events.StopAsked())
    assert drive.exits[0] == 0


def test_a_stop_does_not_wait_for_a_worker_that_cannot_be_killed() -> None:
    drive = Drive().start().connect()
    drive.unkillable = {"CPU-0"}
    drive.feed(events.StopAsked())
    drive.pass_time(10.0)
    assert drive.exits[0] == 0


def test_the_sick_one_of_two_gpus_under_one_worker_is_left_alone_and_the_other_serves() -> None:
    models = [profile("big", vram_mb=3000, min_devices=2), profile("m")]
    drive = Drive(devices=[gpu(A), gpu(B)], models=models).start().connect()
    drive.probe_reads(A, B)
    drive.submit(job("j", "big"))
    for _ in range(3):
        drive.probe_reads(A, B)
        drive.pass_time(1.0)
    assert drive.machine.host.owner(B) == A
    drive.probe_reads(A, B, xids=[Xid(B, 79)])
    for _ in range(3):
        drive.probe_reads(A, B)
        drive.pass_time(1.0)
    assert (state(drive, A), state(drive, B)) == (State.READY, State.QUARANTINED)
    drive.submit(job("small", "m"))
    assert drive.tasks["small"][0] == A
    drive.check()


def test_after_a_sleep_of_the_host_no_gpu_serves_with_a_process_that_slept_on_it() -> None:
    drive = two_gpus()
    drive.submit(job("j"))
    before = {name: drive.incarnation(name) for name in (A, B, "probe", "prep")}
    drive.feed(events.Woken(3600.0))
    assert [i.code for m in drive.told_of(Failed) for i in m.items] == ["worker_died"]
    assert [i.strikes for m in drive.told_of(Failed) for i in m.items] == [0]
    drive.submit(job("j", attempt=2))
    assert "j" not in drive.tasks, "not before its worker is a new one"
    drive.probe_reads(A, B)
    assert "j" in drive.tasks
    after = {name: drive.incarnation(name) for name in (A, B, "probe", "prep")}
    assert {n for n in after if after[n] != before[n]} == {A, B, "probe"}
    drive.check()


def test_a_sleep_costs_a_cpu_device_nothing() -> None:
    drive = Drive().start().connect()
    before = drive.incarnation("CPU-0")
    drive.feed(events.Woken(3600.0))
    assert drive.incarnation("CPU-0") == before
