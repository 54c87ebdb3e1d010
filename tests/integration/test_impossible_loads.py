"""A load that cannot work, asked for again and again over HTTP: the same clear error at once, and nobody makes room."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.gguf_files import truncate, write_tiny
from tests.support.harness import DEMO_MODEL, Gateway, Neuron
from tests.support.tiny_models import write_tiny_model

TIMES, WITHIN_S = 50, 0.05
TAKEN = 2
"""Requests of fifty during which the host may take the processor away."""
RESIDENT = {"idle", "pinned"}
REASONS = {
    "future": "unknown model architecture: 'architecture-of-2031'",
    "half": "is truncated",
    "huge": "5000 MiB",
    "beside": "pinned may not",
    "option": "block size 32 does not divide",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("models")
    demo = {"source": f"file:{DEMO_MODEL}", "context": 512, "kv_tokens": 1024, "parallel": 2}
    quantised = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    return [
        {"id": "idle", **demo, "vram_mb": 400},
        {"id": "pinned", **demo, "vram_mb": 400, "context": 500},
        {"id": "huge", **demo, "vram_mb": 5000},
        {"id": "beside", **demo, "vram_mb": 800},
        {"id": "future", "source": f"file:{write_tiny(folder / 'future.gguf', arch='architecture-of-2031')}"},
        {"id": "half", "source": f"file:{truncate(write_tiny(folder / 'half.gguf'))}"},
        {"id": "option", "source": f"file:{write_tiny_model(folder, 'llama')}", "engine": quantised},
    ]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, models: list[dict[str, Any]]) -> Iterator[tuple[Neuron, Gateway]]:
    base = tmp_path_factory.mktemp("fleet")
    devices = [{"kind": "cpu", "memory_mb": 900, "threads": 1}]
    with (
        Neuron(base / "n", devices=devices) as neuron,
        Gateway(base / "g", neurons=[neuron], models={"models": models}) as gateway,
    ):
        # What the gateway describes is looked at as soon as it has told of it.
        neuron.wait_for(lambda s: sum(bool(m["memory_mb"] or m["reason"]) for m in s["state"]["models"]) == len(models))
        assert neuron.ctl("pin", "pinned").returncode == 0
        for model in sorted(RESIDENT):
            answer = httpx.post(f"{gateway.url}/v1/completions", json=asking(model), timeout=60)
            assert answer.status_code == 200, answer.text
        yield neuron, gateway


def asking(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "a", "max_tokens": 2, **more}


@pytest.mark.alone
def test_each_of_fifty_requests_is_refused_at_once_and_no_victim_is_touched(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    url, ended, pieces = f"{gateway.url}/v1/completions", threading.Event(), 0

    def stream() -> None:
        """Keep the pinned model busy."""
        nonlocal pieces
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                body = asking("pinned", stream=True, max_tokens=200, ignore_eos=True)
                with client.stream("POST", url, json=body) as response:
                    for line in response.iter_lines():
                        pieces += line.startswith("data:")

    before = resident(neuron)
    assert set(before) == RESIDENT
    running = threading.Thread(target=stream)
    running.start()
    try:
        with httpx.Client(timeout=30) as client:
            for model, words in REASONS.items():
                answers, times = [], []
                for _ in range(TIMES):
                    began = time.monotonic()
                    answers.append(client.post(url, json=asking(model)))
                    times.append(time.monotonic() - began)
                assert {a.status_code for a in answers} <= {413, 503}, answers[0].text
                said = {a.json()["error"]["message"] for a in answers}
                assert len(said) == 1, said
                assert words in said.pop()
                print(f"{model}: first {times[0] * 1000:.1f} ms, longest of the others {max(times[1:]) * 1000:.1f} ms")
                assert sorted(times)[-1 - TAKEN] < WITHIN_S, (model, times)
        assert pieces > 0
    finally:
        ended.set()
        running.join(60)
    assert resident(neuron) == before
    assert "evicting model" not in neuron.log
    assert neuron.status()["state"]["evictions"] == {}


def resident(neuron: Neuron) -> dict[str, tuple[str, float]]:
    """Return which models are loaded, and how long each load took, which differs with every load."""
    rows = [(m["id"], r) for m in neuron.status()["state"]["models"] for r in m["replicas"]]
    return {name: (r["status"], r["load_s"]) for name, r in rows}
