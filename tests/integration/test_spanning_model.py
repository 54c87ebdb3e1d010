"""A model that takes two devices, with the real model on virtual ones: one worker owns both, and gives them back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.integration.test_residency import complete, loaded, profile
from tests.support.harness import Gateway, Neuron

DEVICES = [{"kind": "cpu", "memory_mb": 900, "threads": 1}] * 2


def pids(status: dict[str, Any]) -> set[int]:
    return {d["worker_pid"] for d in status["state"]["devices"]}


def test_a_model_on_two_devices_has_one_worker_which_serves_the_small_ones_too(tmp_path: Path) -> None:
    models = [
        profile(tmp_path, "m0", pinned_on=["beast"]),
        profile(tmp_path, "m1"),
        profile(tmp_path, "m2"),
        profile(tmp_path, "m3", min_devices=2, vram_mb=1000),
    ]
    with (
        Neuron(tmp_path / "n", models=models, devices=DEVICES) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        first, second = (d["uuid"] for d in neuron.status()["state"]["devices"])
        for model, device in (("m0", first), ("m1", first), ("m2", second)):
            assert neuron.ctl("load", model, "--device", device).returncode == 0
            assert complete(gateway, model).status_code == 200
        before = pids(neuron.status())
        assert len(before) == 2
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda m: complete(gateway, m), ("m3", "m0", "m2", "m0")))
        assert [a.text for a in answers if a.status_code != 200] == []
        status = neuron.wait_for(lambda s: set(loaded(s)) == {"m0", "m2", "m3"})
        assert len(pids(status)) == 1
        assert pids(status).isdisjoint(before)
        assert [d["owner"] for d in status["state"]["devices"]] == [None, first]
        assert all(d["reserved_mb"] <= d["memory_mb"] for d in status["state"]["devices"])
        big = next(m for m in status["state"]["models"] if m["id"] == "m3")
        assert (big["replicas"][0]["device"], big["replicas"][0]["also_on"]) == (first, [second])
        assert f"{first}+{second}" in neuron.ctl("models").stdout
        assert f"{second}: belongs to the worker of {first} now" in neuron.ctl("devices").stdout
        gone = next(m for m in status["state"]["models"] if m["id"] == "m1")
        assert "made room for m3" in gone["unloaded_because"]
        assert neuron.ctl("unload", "m3").returncode == 0
        status = neuron.wait_for(lambda s: len(pids(s) - {None}) == 2 and loaded(s) == {"m0": first, "m2": second})
        assert [d["owner"] for d in status["state"]["devices"]] == [None, None]
        assert [complete(gateway, m).status_code for m in ("m0", "m2")] == [200, 200]
        assert all(d["restarts"] == 0 for d in status["state"]["devices"])
