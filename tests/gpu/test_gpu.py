"""A real GPU: load, stream, a fault that costs one worker, memory that is released."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron.discovery import Gpu
from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.streams import Stream, chat

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

SHARE_MB = 4096


@pytest.fixture
def fleet(gpu: Gpu, tmp_path: Path) -> Iterator[tuple[Neuron, Gateway]]:
    """Two workers on two shares of one GPU, a model on each."""
    share = {"uuid": gpu.uuid, "memory_mb": SHARE_MB, "test_only": True}
    models = [
        {"id": n, "source": DEMO_SOURCE, "vram_mb": 3000, "context": 4096, "parallel": 4} for n in ("left", "right")
    ]
    with (
        Neuron(tmp_path / "n", devices=[share, share], models=models, preload=["left", "right"],
               engine="tests.gpu.faulty_engine") as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        neuron.wait_for(lambda s: all(m["status"] == "loaded" for m in s["state"]["models"]), timeout_s=120)
        yield neuron, gateway


def test_a_model_streams_from_the_gpu_and_says_so(fleet: tuple[Neuron, Gateway], gpu: Gpu) -> None:
    neuron, gateway = fleet
    reading = Stream(f"{gateway.url}/v1/chat/completions", chat("left", "Hello", max_tokens=64)).finish()
    assert reading.done
    assert reading.text
    devices = neuron.status()["state"]["devices"]
    assert [d["uuid"] for d in devices] == [gpu.uuid, f"{gpu.uuid}#2"]
    assert {d["backend"] for d in devices} == {"CUDA"}


def test_an_illegal_access_costs_one_worker_and_its_memory_is_seen_free(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    url = f"{gateway.url}/v1/chat/completions"
    endless = {"max_tokens": 3000, "logit_bias": {"0": -100, "2": -100}}
    left, right = Stream(url, chat("left", "One", **endless)), Stream(url, chat("right", "Two", **endless))
    assert left.started.wait(60)
    assert right.started.wait(60)
    state = neuron.status()["state"]
    device = next(m for m in state["models"] if m["id"] == "left")["replicas"][0]["device"]
    pid = next(d for d in state["devices"] if d["uuid"] == device)["worker_pid"]
    os.kill(pid, signal.SIGUSR1)
    dead, alive = left.finish(), right.finish()
    assert dead.error is not None
    assert not dead.done
    assert alive.done
    assert alive.finish_reason == "length"
    status = neuron.wait_for(
        lambda s: next(m for m in s["state"]["models"] if m["id"] == "left")["status"] == "loaded", timeout_s=120
    )
    assert next(d for d in status["state"]["devices"] if d["uuid"] == device)["restarts"] == 1
    assert "releasing" in neuron.log  # the next worker waited until the dead one's memory was seen free
    assert Stream(url, chat("left", "Again", max_tokens=8)).finish().done


def test_an_unload_returns_the_devices_memory(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, _ = fleet
    before = neuron.wait_for(lambda s: s["state"]["devices"][0]["used_mb"])["state"]["devices"][0]["used_mb"]
    assert neuron.ctl("unload", "left").returncode == 0
    neuron.wait_for(lambda s: s["state"]["devices"][0]["used_mb"] < before - 50, timeout_s=30)
