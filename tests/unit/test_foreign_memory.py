"""What other programs hold of a GPU is given to no model, and a worker's own context is kept free."""

from typing import Any

from common.messages import Failed, LoadModel
from neuron.discovery import CUDA_CONTEXT_MB, Device, Gpu, ProbeReading, resolve_devices
from neuron.settings import DeviceEntry
from neuron.supervisor import events
from tests.support.drive import Drive, job, profile

A = "GPU-a"


def reads(drive: Drive, processes: dict[int, int], **more: bool) -> None:
    """Have the probe tell who holds how much of the GPU."""
    seen = Gpu(uuid=A, name="RTX", pci="x", index=0, memory_total_mb=2000, processes=processes, **more)
    drive.feed(events.ProbeRead(drive.incarnation("probe"), ProbeReading(devices=[seen])))


def started(**device: Any) -> Drive:
    made = Device(uuid=A, name="RTX", kind="cuda", memory_mb=2000, visible=A, **device)
    models = [profile("m", vram_mb=1000), profile("n", vram_mb=800)]
    return Drive(devices=[made], models=models).start().connect()


def worker_pid(drive: Drive) -> int:
    pid = drive.machine.host.workers[A].pid
    assert pid is not None
    return pid


def free_mb(drive: Drive) -> int | None:
    return drive.machine.host.ledger.free_mb(A)


def test_every_gpu_keeps_room_for_its_workers_context() -> None:
    reading = ProbeReading(devices=[Gpu(uuid=A, name="RTX", pci="x", index=0, memory_total_mb=12288)])
    [device] = resolve_devices([DeviceEntry(uuid=A, reserve_mb=500)], reading, 1000)
    assert device.for_models_mb == 12288 - CUDA_CONTEXT_MB - 500
    assert resolve_devices("auto", ProbeReading(), 1000)[0].for_models_mb == 500  # the CPU has none


def test_other_programs_memory_is_not_given_away_and_the_workers_own_is() -> None:
    drive = started(context_mb=100)
    assert free_mb(drive) == 1900
    reads(drive, {worker_pid(drive): 700, 4711: 300, 4712: 200})
    assert free_mb(drive) == 1400
    reads(drive, {worker_pid(drive): 700})
    assert free_mb(drive) == 1900


def test_a_model_that_does_not_fit_beside_another_program_is_refused_and_fits_once_that_is_gone() -> None:
    drive = started()
    reads(drive, {4711: 1500})
    drive.submit(job("j"))
    [failed] = [i for m in drive.told_of(Failed) for i in m.items]
    assert failed.code == "no_capacity"
    assert "500 MiB are free" in failed.message
    assert drive.sent_to(A, LoadModel) == []
    reads(drive, {})
    drive.submit(job("again"))
    assert [m.model for m in drive.sent_to(A, LoadModel)] == ["m"]
    drive.check()


def test_others_that_come_while_models_are_loaded_leave_these_alone_and_make_the_next_one_wait_for_room() -> None:
    drive = started()
    drive.submit(job("j"))
    drive.finish("j")
    drive.pass_time(11)
    reads(drive, {worker_pid(drive): 1000, 4711: 900})
    assert set(drive.machine.host.models["m"].replicas) == {A}
    drive.submit(job("k", "n"))
    drive.finish("k")
    assert [m.model for m in drive.sent_to(A, LoadModel)] == ["m", "n"]  # there would be room for both
    assert not drive.machine.host.models["m"].replicas
    drive.check()


def test_a_reserve_is_what_the_others_may_have() -> None:
    drive = started(reserve_mb=400)
    reads(drive, {4711: 300})
    assert free_mb(drive) == 1600
    reads(drive, {4711: 500})
    assert free_mb(drive) == 1500


def test_pids_of_another_namespace_count_for_nothing() -> None:
    drive = started()
    reads(drive, {4711: 1500}, are_strangers=True)
    assert free_mb(drive) == 2000
