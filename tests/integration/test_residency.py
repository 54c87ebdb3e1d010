"""More models than memory, with the real model: two virtual devices hold two each, and there are six."""

import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron.supervisor.upkeep import DEFRAG_IDLE_S
from tests.support.fake_engine import write_model
from tests.support.harness import DEMO_MODEL, Gateway, Neuron

MODELS = [f"m{i}" for i in range(6)]
DEVICES = [{"kind": "cpu", "memory_mb": 900, "threads": 1}] * 2


def profile(folder: Path, model: str, **more: Any) -> dict[str, Any]:
    """Return the profile of a copy of the demo model."""
    path = folder / f"{model}.gguf"
    if not path.exists():
        path.symlink_to(DEMO_MODEL)
    row = {"id": model, "source": f"file:{path}", "vram_mb": 400, "context": 256 + 64 * int(model[1:])}
    return {**row, "kv_tokens": 1024, "parallel": 2, **more}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Gateway]]:
    base = tmp_path_factory.mktemp("residency")
    low, high = profile(base, "m6", residency_priority=10), profile(base, "m7", residency_priority=200)
    with (
        Neuron(base / "n", models=[profile(base, m) for m in MODELS] + [low, high], devices=DEVICES) as neuron,
        Gateway(base / "g", neurons=[neuron]) as gateway,
    ):
        neuron.wait_for(lambda s: all(m["memory_mb"] for m in s["state"]["models"]))
        yield neuron, gateway


def complete(gateway: Gateway, model: str) -> httpx.Response:
    body = {"model": model, "prompt": f"I am {model} and", "max_tokens": 4, "temperature": 0}
    return httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=120)


def loaded(status: dict[str, Any]) -> dict[str, str]:
    """Map each loaded model to its device."""
    rows = [(m["id"], r) for m in status["state"]["models"] for r in m["replicas"]]
    return {model: r["device"] for model, r in rows if r["status"] == "loaded"}


def test_a_request_for_each_of_six_models_is_answered_where_four_fit(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda m: complete(gateway, m), MODELS))
    assert [(a.status_code, a.text) for a in answers if a.status_code != 200] == []
    status = neuron.status()
    assert len(loaded(status)) == 4
    evicted = [m for m in status["state"]["models"] if m["status"] == "unloaded" and m["id"] in MODELS]
    assert len(evicted) == 2
    assert all("made room for" in m["unloaded_because"] for m in evicted)
    assert all(d["reserved_mb"] <= d["memory_mb"] for d in status["state"]["devices"])
    assert neuron.log.count("evicting model") >= 2


def test_random_requests_over_more_models_than_fit_all_end_well(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    choice = random.Random(7)
    wanted = [choice.choice(MODELS) for _ in range(60)]
    before = neuron.log.count("evicting model")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda m: complete(gateway, m), wanted))
    assert [(a.status_code, a.text) for a in answers if a.status_code != 200] == []
    assert neuron.log.count("evicting model") > before
    assert not re.search(r"worker_died|WARNING.*worker ended", neuron.log)
    assert all(m["queued"] == m["running"] == 0 for m in neuron.status()["state"]["models"])


def test_a_pinned_model_stays_and_a_lower_class_is_refused_at_once(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    assert neuron.ctl("load", "m0").returncode == 0
    assert neuron.ctl("pin", "m0").returncode == 0
    assert neuron.ctl("pin", "m0").returncode == 0
    for model in MODELS[1:]:
        assert complete(gateway, model).status_code == 200
        assert "m0" in loaded(neuron.status())
    resident = loaded(neuron.status())
    assert len(resident) == 4
    refused = complete(gateway, "m6")
    assert (refused.status_code, "m0" in refused.json()["error"]["message"]) == (503, True)
    assert loaded(neuron.status()) == resident
    assert complete(gateway, "m7").status_code == 200
    assert complete(gateway, "m1").status_code == 200
    assert {"m0", "m7"} <= set(loaded(neuron.status())), "neither a pinned model nor a higher class makes room"
    assert neuron.ctl("unload", "m7").returncode == 0
    assert complete(gateway, "m6").status_code == 200
    assert neuron.ctl("unload", "m6").returncode == 0
    assert neuron.ctl("unpin", "m0").returncode == 0


def test_a_paused_device_is_left_alone_and_gets_its_models_back(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    device, *_ = sorted(set(loaded(neuron.status()).values()))
    held = {m for m, d in loaded(neuron.status()).items() if d == device}
    assert neuron.ctl("pause", device, "--for", "2h").returncode == 0
    row = next(d for d in neuron.status()["state"]["devices"] if d["uuid"] == device)
    assert (row["worker_pid"], row["state"]) == (None, "stopped")
    assert row["reason"].startswith("paused for 120 min")
    for model in sorted(held):
        assert complete(gateway, model).status_code == 200
    assert neuron.ctl("resume", device).returncode == 0
    neuron.wait_for(lambda s: device in {d["uuid"] for d in s["state"]["devices"] if d["state"] == "ready"})


def test_an_unused_model_expires_and_its_worker_ends_until_the_next_request(tmp_path: Path) -> None:
    models = [profile(tmp_path, "m0", ttl_s=0.5)]
    with (
        Neuron(tmp_path / "n", models=models, devices=DEVICES[:1], idle_exit_s=0.5) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        assert complete(gateway, "m0").status_code == 200
        status = neuron.wait_for(lambda s: s["state"]["devices"][0]["state"] == "idle")
        assert status["state"]["devices"][0]["worker_pid"] is None
        assert "ttl_s" in status["state"]["models"][0]["unloaded_because"]
        assert complete(gateway, "m0").status_code == 200


def test_a_worker_is_renewed_after_its_loads_and_only_while_idle(tmp_path: Path) -> None:
    """A stream that outlasts the idle time after which its worker is due ends at the worker it began at."""
    quick, slow = write_model(tmp_path / "quick.gguf"), write_model(tmp_path / "slow.gguf", token_s=0.1, length=58)
    models = [{"id": name, "source": f"file:{path}", "context": 1024} for name, path in (("m0", quick), ("m1", slow))]
    eviction = {"defrag_after_cycles": 2}
    with (
        Neuron(
            tmp_path / "n", models=models, devices=DEVICES[:1], eviction=eviction, engine="tests.support.fake_engine"
        ) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        assert complete(gateway, "m0").status_code == 200
        first = neuron.status()["state"]["devices"][0]
        body = {"model": "m1", "prompt": "go on", "max_tokens": 100}
        began = time.monotonic()
        assert httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60).status_code == 200
        assert time.monotonic() - began > DEFRAG_IDLE_S
        assert neuron.status()["state"]["devices"][0]["worker_pid"] == first["worker_pid"]
        renewed = neuron.wait_for(
            lambda s: s["state"]["devices"][0]["worker_pid"] not in (None, first["worker_pid"]) and len(loaded(s)) == 2
        )
        assert renewed["state"]["devices"][0]["restarts"] == 0
        assert complete(gateway, "m0").status_code == 200
        assert "job is sent again" not in gateway.log


def test_a_restarted_neuron_has_its_models_and_pauses_again(tmp_path: Path) -> None:
    models = [profile(tmp_path, m) for m in MODELS[:2]]
    settings: dict[str, Any] = {"devices": DEVICES, "state_dir": str(tmp_path / "state")}
    with Neuron(tmp_path / "n", models=models, **settings) as neuron:
        first, second = (d["uuid"] for d in neuron.status()["state"]["devices"])
        assert neuron.ctl("load", "m0", "--device", first).returncode == 0
        assert neuron.ctl("pin", "m0").returncode == 0
        assert neuron.ctl("pause", second, "--for", "1h").returncode == 0
    # The second life knows the first one's models only from the state.
    with Neuron(tmp_path / "n", **settings) as neuron:
        status = neuron.wait_for(lambda s: loaded(s) == {"m0": first})
        assert [m["pinned"] for m in status["state"]["models"]] == [True]
        rows = {d["uuid"]: d for d in status["state"]["devices"]}
        assert rows[second]["state"] == "stopped"
        assert "paused for" in rows[second]["reason"]
