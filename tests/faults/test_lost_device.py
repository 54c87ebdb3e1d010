"""A device that is taken out of service: its models come up elsewhere, with and without a request for them."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import Gateway, Neuron
from tests.support.streams import Stream, chat

CPU = {"kind": "cpu", "memory_mb": 1000, "threads": 1}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[list[Neuron], Gateway]]:
    """Two neurons, of which the first has two models; any death takes a device out of service."""
    models = [
        {"id": name, "source": f"file:{write_model(tmp_path / f'{name}.json', token_s=0.01)}", "vram_mb": 400}
        for name in ("busy", "idle")
    ]
    with ExitStack() as stack:
        neurons = [
            stack.enter_context(
                Neuron(tmp_path / name, name=name, devices=[CPU], models=models, preload=preload,
                       engine="tests.support.fake_engine", restart={"quarantine_after": 1, "cool_down_s": 600})
            )
            for name, preload in (("a", ["busy", "idle"]), ("b", []))
        ]  # fmt: skip
        neurons[0].wait_for(lambda s: loaded(s) == {"busy", "idle"})
        yield neurons, stack.enter_context(Gateway(tmp_path / "g", neurons=neurons))


def loaded(status: dict[str, Any]) -> set[str]:
    return {m["id"] for m in status["state"]["models"] if m["status"] == "loaded"}


def test_its_models_move_to_another_neuron_and_its_stream_goes_on_there(fleet: tuple[list[Neuron], Gateway]) -> None:
    (first, second), gateway = fleet
    url = f"{gateway.url}/v1/chat/completions"
    stream = Stream(url, chat("busy", "moved", max_tokens=300))
    assert stream.started.wait(20)
    pid = first.status()["state"]["devices"][0]["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    reading = stream.finish(30)
    assert (reading.done, reading.error) == (True, None)
    assert reading.text == text_of(answer(tokenise("user: moved"), 300))
    second.wait_for(lambda s: loaded(s) == {"busy", "idle"})  # nobody has asked for `idle`
    state = first.status()["state"]
    assert state["devices"][0]["state"] == "quarantined"
    assert loaded(first.status()) == set()
    reply = httpx.post(url, json=chat("idle", "x", max_tokens=3), timeout=5)
    assert reply.status_code == 200
