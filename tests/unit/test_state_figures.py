"""Figures of a neuron's state that only metrics read, and how they live through swaps and restarts."""

import pytest

from common.messages import DiskState, Load, Loaded, LoadModel, NodeState, Started, StartedItem, Unload
from neuron.supervisor import events
from tests.support.drive import Drive, cpu, gpu, job, profile


def last_full(drive: Drive) -> NodeState:
    drive.pass_time(11.0)
    return next(s for s in reversed(drive.told_of(NodeState)) if s.full)


def loaded(in_force: dict[str, str]) -> Loaded:
    return Loaded(model="m", memory_mb=250, context=1000, kv_tokens=2000, parallel=2, in_force=in_force)


def test_prompts_and_what_was_cached_of_them_are_counted_for_each_life_of_a_worker() -> None:
    drive = Drive().start().connect()
    for name, cached in (("a", 0), ("b", 2)):
        drive.submit(job(name))
        again = StartedItem(job="old", attempt=1, prompt_tokens=3, cached_tokens=cached, max_tokens=5)
        drive.worker_says("CPU-0", Started(items=[again]))
        drive.finish(name)
    (device,) = last_full(drive).devices
    assert (device.prompt_tokens, device.cached_tokens) == (12, 2)
    drive.die("CPU-0")
    (device,) = last_full(drive).devices
    assert (device.prompt_tokens, device.cached_tokens) == (0, 0)


@pytest.mark.parametrize(("told", "layers"), [("20/33", 13), ("33/33", 0), (None, None)])
def test_layers_that_stayed_on_the_cpu_are_told_as_llama_cpp_says_it(told: str | None, layers: int | None) -> None:
    drive = Drive(devices=[gpu("GPU-0")])
    drive.holding_back.add(LoadModel)
    drive.start().connect()
    drive.probe_reads("GPU-0")
    drive.peer_says(Load(request="l", model="m"))
    in_force = {} if told is None else {"n_gpu_layers": told}
    drive.worker_says("GPU-0", loaded(in_force))
    (model,) = last_full(drive).models
    assert [r.cpu_layers for r in model.replicas] == [layers]


def test_a_cpu_device_has_no_layers_that_a_gpu_should_have() -> None:
    drive = Drive(devices=[cpu("CPU-0")])
    drive.holding_back.add(LoadModel)
    drive.start().connect()
    drive.peer_says(Load(request="l", model="m"))
    drive.worker_says("CPU-0", loaded({"n_gpu_layers": "0/33"}))
    (model,) = last_full(drive).models
    assert [r.cpu_layers for r in model.replicas] == [None]


def test_the_time_of_a_load_is_told_after_the_model_has_made_room() -> None:
    drive = Drive(models=[profile("m")])
    drive.holding_back.add(LoadModel)
    drive.start().connect()
    drive.peer_says(Load(request="l", model="m"))
    drive.pass_time(3.0)
    drive.worker_says("CPU-0", drive.loaded("m"))
    drive.peer_says(Unload(request="u", model="m"))
    (model,) = last_full(drive).models
    assert (model.status, model.replicas, model.load_s) == ("unloaded", [], 3.0)


def test_how_full_the_disks_are_is_pushed_after_each_look() -> None:
    drive = Drive().start().connect()
    before = len(drive.told_of(NodeState))
    for free_mb in (500, 400):
        disks = [DiskState(folder="/models", total_mb=1000, free_mb=free_mb)]
        drive.feed(events.ModelsFound([], disks))
        assert last_full(drive).disks == disks
    assert len(drive.told_of(NodeState)) > before
