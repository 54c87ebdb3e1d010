"""Streams survive the death of what computes them: the same HTTP response goes on, nothing repeated or lost."""

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import write_model
from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.streams import Stream, chat

CPU = {"kind": "cpu", "memory_mb": 1024, "threads": 1}
KILLS = 12


def answer(gateway: Gateway, body: dict[str, Any]) -> str:
    """Return the whole text of an answer that nothing disturbs."""
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    return str(reply["choices"][0]["message"]["content"])


def worker_pid(neuron: Neuron) -> int | None:
    pid: int | None = neuron.status()["state"]["devices"][0]["worker_pid"]
    return pid


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[Neuron], Gateway]]:
    """Two neurons, each with a replica of one fake model."""
    model = {"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}", "vram_mb": 100}
    with ExitStack() as stack:
        neurons = [
            stack.enter_context(
                Neuron(tmp_path / name, name=name, devices=[CPU], models=[model], preload=["m"],
                       engine="tests.support.fake_engine")
            )
            for name in ("a", "b")
        ]  # fmt: skip
        gateway = stack.enter_context(Gateway(tmp_path / "g", neurons=neurons))
        for neuron in neurons:
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        yield neurons, gateway


def test_a_worker_that_is_killed_again_and_again_costs_pauses_only(tmp_path: Path) -> None:
    chance = random.Random(7)
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.005)}"
    with (
        Neuron(tmp_path / "n", devices=[CPU], models=[{"id": "m", "source": source, "vram_mb": 100}], preload=["m"],
               engine="tests.support.fake_engine", restart={"backoff_s": 0.05}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        url = f"{gateway.url}/v1/chat/completions"
        for number in range(KILLS):
            body = chat("m", f"prompt {number}", max_tokens=80)
            stream = Stream(url, body)
            assert stream.started.wait(20)
            time.sleep(chance.uniform(0.0, 0.2))  # anywhere in the answer
            pid = worker_pid(neuron)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            reading = stream.finish(30)
            assert (reading.done, reading.finish_reason, reading.error) == (True, "length", None)
            assert reading.text == answer(gateway, body)
        assert neuron.status()["jobs"] == []


def test_the_death_of_a_whole_neuron_moves_its_streams_to_the_other(pair: tuple[list[Neuron], Gateway]) -> None:
    neurons, gateway = pair
    url = f"{gateway.url}/v1/chat/completions"
    bodies = [chat("m", f"prompt {i}", max_tokens=200) for i in range(8)]
    streams = [Stream(url, body) for body in bodies]
    for stream in streams:
        assert stream.started.wait(20)
    busiest = max(neurons, key=lambda n: len(n.status()["jobs"]))
    assert busiest.status()["jobs"]
    busiest.kill(signal.SIGKILL)
    for stream, body in zip(streams, bodies, strict=True):
        reading = stream.finish(60)
        assert (reading.done, reading.finish_reason, reading.error) == (True, "length", None)
        assert reading.text == answer(gateway, body)


def test_a_stopping_neuron_hands_its_long_streams_over(pair: tuple[list[Neuron], Gateway]) -> None:
    neurons, gateway = pair
    body = chat("m", "long", max_tokens=600)
    stream = Stream(f"{gateway.url}/v1/chat/completions", body)
    assert stream.started.wait(20)
    holder = max(neurons, key=lambda n: len(n.status()["jobs"]))
    assert holder.stop() == 0
    reading = stream.finish(60)
    assert (reading.done, reading.error) == (True, None)
    assert reading.text == answer(gateway, body)


def test_a_request_without_streaming_gets_its_whole_answer_too(pair: tuple[list[Neuron], Gateway]) -> None:
    neurons, gateway = pair
    body = chat("m", "whole", max_tokens=150)
    waiting = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "marker", max_tokens=1))
    waiting.finish(20)
    with httpx.Client(timeout=60) as client, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        reply = pool.submit(client.post, f"{gateway.url}/v1/chat/completions", json=body)
        holder = None
        deadline = time.monotonic() + 10
        while holder is None:
            assert time.monotonic() < deadline
            holder = next((n for n in neurons if any(j["state"] == "running" for j in n.status()["jobs"])), None)
        pid = worker_pid(holder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        choice = reply.result().raise_for_status().json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == answer(gateway, body)


def test_both_answers_of_n_go_on(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}"
    with (
        Neuron(tmp_path / "n", devices=[CPU], models=[{"id": "m", "source": source, "vram_mb": 100}], preload=["m"],
               engine="tests.support.fake_engine") as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        stream = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "twice", max_tokens=100, n=2))
        assert stream.started.wait(20)
        pid = worker_pid(neuron)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        reading = stream.finish(30)
        assert reading.done
        texts = ["", ""]
        for _, event in reading.events:
            for part in event["choices"]:
                texts[part["index"]] += part["delta"].get("content") or ""
        assert texts == [answer(gateway, chat("m", "twice", max_tokens=100))] * 2


def test_the_real_model_goes_on_where_it_was(tmp_path: Path) -> None:
    model = {"id": "demo", "source": DEMO_SOURCE, "context": 2048, "kv_tokens": 4096, "parallel": 4}
    with (
        Neuron(tmp_path / "n", models=[model], preload=["demo"]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
        body = chat("demo", "Tell a story about a lighthouse.", max_tokens=120, temperature=0, stop=["\n\n\n"])
        stream = Stream(f"{gateway.url}/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
        assert stream.started.wait(60)
        pid = worker_pid(neuron)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        cut_at = len(stream.reading.text)
        reading = stream.finish(120)
        assert reading.done
        usage = next(e["usage"] for _, e in reading.events if e.get("usage"))
        undisturbed = answer(gateway, body)
        # What had been delivered is kept to the letter; what follows is the model's own continuation.
        assert reading.text[:cut_at] == undisturbed[:cut_at]
        assert len(reading.text) > cut_at
        assert usage["completion_tokens"] <= 120
