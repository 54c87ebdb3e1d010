"""Host memory is promised like a device's; what models leave of it is shared by the workers that run."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.messages import Load, Refused, ShareHostMemory, Unload, Unloaded, UnloadModel
from neuron.memory.estimate import MemoryPlan
from neuron.memory.residency import Model
from neuron.settings import NeuronSettings
from neuron.supervisor import inspection, room
from neuron.supervisor.host import Host
from tests.support.drive import Drive, cpu, job, profile

BESIDE = {"heavy": 500, "other": 300, "third": 200, "twin": 500, "giant": 900}
"""MiB that these keep in host memory."""


@pytest.fixture(autouse=True)
def _models_keep_something_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size: Callable[..., MemoryPlan | str] = inspection.size_model

    def sized(host: Host, model: Model, device: str, free_mb: int | None) -> MemoryPlan | str:
        plan = size(host, model, device, free_mb)
        return replace(plan, host_mb=BESIDE.get(model.id, 0)) if isinstance(plan, MemoryPlan) else plan

    monkeypatch.setattr(room, "size_model", sized)


def start(*models: str, devices: int = 2, cache_mb: int | None = None) -> Drive:
    settings = NeuronSettings(name="test", host_memory_mb=800, host_cache_mb=cache_mb, idle_exit_s=5.0)
    rows = [profile(m, vram_mb=300) for m in models]
    drive = Drive(devices=[cpu(f"CPU-{n}", 1000) for n in range(devices)], models=rows, settings=settings)
    drive.beside = BESIDE
    return drive.start().connect()


def share(drive: Drive, device: str) -> int:
    """Return what a worker was told last."""
    return drive.sent_to(device, ShareHostMemory)[-1].mb


def test_workers_share_what_the_models_leave() -> None:
    drive = start("heavy", "small")
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (400, 400)
    drive.peer_says(Load(request="1", model="heavy", device="CPU-0"))
    drive.check()
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (150, 150)
    drive.pass_time(7.0)
    assert drive.machine.host.workers["CPU-1"].state == "idle"
    assert share(drive, "CPU-0") == 300
    drive.peer_says(Load(request="2", model="small", device="CPU-1"))
    assert (share(drive, "CPU-0"), share(drive, "CPU-1")) == (150, 150)
    drive.peer_says(Unload(request="3", model="heavy"))
    assert share(drive, "CPU-0") == 400
    drive.check()


def test_a_worker_that_is_restarted_keeps_its_share_of_the_others() -> None:
    drive = start("small")
    told = len(drive.sent_to("CPU-1", ShareHostMemory))
    drive.die("CPU-0")
    drive.pass_time(1.0)
    assert len(drive.sent_to("CPU-1", ShareHostMemory)) == told
    assert share(drive, "CPU-0") == 400


def test_conversations_get_no_more_than_their_own_limit() -> None:
    drive = start("heavy", cache_mb=100)
    assert share(drive, "CPU-0") == 50
    drive.peer_says(Load(request="1", model="heavy", device="CPU-0"))
    assert share(drive, "CPU-0") == 50


def test_a_model_that_keeps_more_in_host_memory_than_there_is_is_refused_with_the_numbers() -> None:
    drive = start("giant")
    drive.peer_says(Load(request="1", model="giant"))
    (refused,) = drive.told_of(Refused)
    assert "keeps 900 MiB in host memory, and this host gives 800 (host_memory_mb)" in refused.message


def test_a_model_makes_room_in_host_memory_too_on_whatever_device_it_is() -> None:
    drive = start("heavy", "other", "third")
    for name, model in enumerate(("heavy", "other")):
        drive.peer_says(Load(request=model, model=model, device=f"CPU-{name}"))
        drive.submit(job(f"{name}", model))
        drive.finish(f"{name}")
        drive.pass_time(1.0)
        drive.check()
    assert share(drive, "CPU-0") == 0
    drive.submit(job("busy", "heavy"))
    drive.submit(job("2", "third"))
    drive.check()
    assert set(drive.tasks) == {"busy", "2"}, "the idle one goes"
    assert "made room for third" in (drive.machine.host.models["other"].unloaded_because or "")
    assert drive.machine.host.models["heavy"].status == "loaded"


def test_host_memory_that_is_about_to_be_free_is_not_free_yet() -> None:
    drive = start("heavy", "other", "twin")
    drive.peer_says(Load(request="1", model="heavy", device="CPU-0"))
    drive.submit(job("0", "heavy"))
    drive.finish("0")
    drive.holding_back = {UnloadModel}
    drive.peer_says(Unload(request="2", model="heavy"))
    drive.submit(job("1", "twin"))
    drive.pass_time(1.0)
    drive.check()
    assert set(drive.tasks) == set()
    drive.worker_says("CPU-0", Unloaded(model="heavy"))
    drive.check()
    assert set(drive.tasks) == {"1"}


def test_one_worker_of_several_devices_has_one_share() -> None:
    models = [profile("big", vram_mb=600, min_devices=2)]
    settings = NeuronSettings(name="test", host_memory_mb=800)
    drive = Drive(devices=[cpu("CPU-0", 1000), cpu("CPU-1", 1000)], models=models, settings=settings).start().connect()
    drive.peer_says(Load(request="1", model="big"))
    assert share(drive, "CPU-0") == 800
