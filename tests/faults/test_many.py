"""The same fault a hundred times, and two hundred streams at once. `make test-faults` runs these.

Figures go to build/faults.

HELEXA_KILLS: another number than a hundred.
"""

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import ROOT, Gateway, Neuron, is_alive, wait_gone
from tests.support.streams import Reading, Stream, chat
from tests.support.worker_process import WorkerProcess

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("HELEXA_KILLS", "100"))
CPU = {"kind": "cpu", "memory_mb": 2048, "threads": 1}
ENGINE = "tests.support.fake_engine"
TOKENS = 120


def expected(prompt: str, count: int = TOKENS) -> str:
    """Return what the fake engine says to a prompt if nothing happens."""
    return text_of(answer(tokenise(f"user: {prompt}"), count))


def check(reading: Reading, prompt: str, count: int = TOKENS) -> float:
    """Assert that a stream is whole, and return its longest pause in seconds."""
    assert (reading.status, reading.done, reading.error, reading.problem) == (200, True, None, None)
    assert (reading.finish_reason, reading.text) == ("length", expected(prompt, count))
    return max(reading.gaps())


def keep(name: str, **figures: object) -> None:
    """Write figures beside those of the benchmarks."""
    folder = ROOT / "build" / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    figures = {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1))
    print(name, figures)


def spread(pauses: list[float]) -> dict[str, float]:
    ordered = sorted(pauses)
    return {"median_s": statistics.median(ordered), "longest_s": ordered[-1]}


def worker_of(neuron: Neuron, model: str = "m") -> int:
    state = neuron.status()["state"]
    [held] = [r["device"] for m in state["models"] if m["id"] == model for r in m["replicas"]]
    pid: int = next(d["worker_pid"] for d in state["devices"] if d["uuid"] == held)
    return pid


def undisturbed_load_s(tmp_path: Path, source: str) -> float:
    """Return the seconds from the spawn of a worker until it has loaded the model, with nothing else going on."""
    times = []
    for number in range(3):
        began = time.monotonic()
        worker = WorkerProcess(tmp_path / f"w{number}", engine=ENGINE, threads=1)
        try:
            worker.load(source)
            times.append(time.monotonic() - began)
        finally:
            worker.close()
    return max(times)


def test_a_worker_killed_a_hundred_times_in_mid_stream(tmp_path: Path) -> None:
    chance = random.Random(7)
    source = write_model(tmp_path / "m.json", token_s=0.005, load_s=0.2)
    beside = write_model(tmp_path / "beside.json", token_s=0.02, context_train=200_000)
    models = [{"id": "m", "source": f"file:{source}", "vram_mb": 1500},
              {"id": "beside", "source": f"file:{beside}", "vram_mb": 1500, "context": 100_000}]  # fmt: skip
    load_s = undisturbed_load_s(tmp_path, source)
    pauses: list[float] = []
    with (
        Neuron(tmp_path / "n", devices=[CPU, CPU], models=models, preload=["m", "beside"], engine=ENGINE,
               restart={"backoff_s": 0.05}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        url = f"{gateway.url}/v1/chat/completions"
        neuron.wait_for(lambda s: {m["status"] for m in s["state"]["models"]} == {"loaded"})
        calm = Stream(url, chat("beside", "calm", max_tokens=8000))
        assert calm.started.wait(20)
        time.sleep(4.0)  # the undisturbed part of the comparison
        first_kill = time.monotonic()
        for number in range(KILLS):
            prompt = f"prompt {number}"
            stream = Stream(url, chat("m", prompt, max_tokens=TOKENS))
            assert stream.started.wait(20)
            time.sleep(chance.uniform(0.0, 0.4))  # anywhere in the answer
            os.kill(worker_of(neuron), signal.SIGKILL)
            pauses.append(check(stream.finish(60), prompt))
        end = time.monotonic()
        other = calm.stop()
        status = neuron.wait_for(lambda s: s["jobs"] == [])
        assert {d["state"] for d in status["state"]["devices"]} == {"ready"}
    undisturbed = sorted(other.gaps(end=first_kill))
    p99 = undisturbed[int(len(undisturbed) * 0.99)]
    disturbed = max(other.gaps(start=first_kill, end=end))
    keep("worker-killed", kills=KILLS, whole=len(pauses), load_s=load_s, **spread(pauses),
         other_device_p99_s=p99, other_device_longest_gap_s=disturbed)  # fmt: skip
    assert max(pauses) <= load_s + 0.5
    assert disturbed <= max(0.05, 3 * p99)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[Neuron], Gateway]]:
    """Two neurons, each with a hot replica of one model."""
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}", "vram_mb": 100}]
    with ExitStack() as stack:
        neurons = [
            stack.enter_context(
                Neuron(tmp_path / name, name=name, devices=[CPU], models=models, preload=["m"], engine=ENGINE)
            )
            for name in ("a", "b")
        ]
        gateway = stack.enter_context(Gateway(tmp_path / "g", neurons=neurons))
        for neuron in neurons:
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        yield neurons, gateway


def holder(neurons: list[Neuron]) -> Neuron:
    return max(neurons, key=lambda n: len(n.status()["jobs"]))


def wait_until_used(gateway: Gateway, neuron: Neuron) -> None:
    """Wait until the gateway sees a neuron as up, with its model loaded."""
    deadline = time.monotonic() + 30
    while True:
        fleet = httpx.get(f"{gateway.url}/fleet/status", headers={"Authorization": "Bearer test-admin-key-0123456789"})
        [node] = [n for n in fleet.json()["nodes"] if n["name"] == neuron.name]
        if node["link"] == "up" and node["state"]["models"][0]["status"] == "loaded":
            return
        assert time.monotonic() < deadline, node
        time.sleep(0.05)


def test_a_whole_neuron_killed_a_hundred_times_beside_a_hot_replica(
    pair: tuple[list[Neuron], Gateway], tmp_path: Path
) -> None:
    neurons, gateway = pair
    url = f"{gateway.url}/v1/chat/completions"
    pauses: list[float] = []
    with ExitStack() as stack:
        for number in range(KILLS):
            prompt = f"prompt {number}"
            stream = Stream(url, chat("m", prompt, max_tokens=TOKENS))
            assert stream.started.wait(20)
            first = holder(neurons)
            family = psutil.Process(first.pid).children(recursive=True)
            first.kill(signal.SIGKILL)
            pauses.append(check(stream.finish(60), prompt))
            assert wait_gone(family, 2.0) == []
            first.process.wait(5)
            again = Neuron(first.folder, name=first.name, port=first.port, devices=[CPU], engine=ENGINE, preload=["m"],
                           models=[{"id": "m", "source": f"file:{tmp_path / 'm.json'}", "vram_mb": 100}])  # fmt: skip
            neurons[neurons.index(first)] = stack.enter_context(again)
            wait_until_used(gateway, again)
    keep("neuron-killed", kills=KILLS, whole=len(pauses), **spread(pauses))
    assert max(pauses) <= 1.5


def test_a_neuron_that_falls_silent_beside_a_hot_replica(pair: tuple[list[Neuron], Gateway]) -> None:
    neurons, gateway = pair
    url = f"{gateway.url}/v1/chat/completions"
    pauses: list[float] = []
    for number in range(max(1, KILLS // 10)):
        prompt = f"prompt {number}"
        stream = Stream(url, chat("m", prompt, max_tokens=TOKENS))
        assert stream.started.wait(20)
        first = holder(neurons)
        family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in family:
            process.suspend()
        pauses.append(check(stream.finish(60), prompt))
        for process in family:
            process.resume()
        wait_until_used(gateway, first)
        first.wait_for(lambda s: s["jobs"] == [])
    keep("neuron-silent", times=len(pauses), **spread(pauses))
    assert max(pauses) <= 4.0


def test_two_hundred_streams_and_one_of_two_workers_killed(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}"
    models: list[dict[str, Any]] = [{"id": "m", "source": source, "vram_mb": 100, "parallel": 110, "kv_tokens": 131072}]
    with (
        Neuron(tmp_path / "n", devices=[CPU, CPU], models=models, engine=ENGINE, preload=["m"]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron], workers=2) as gateway,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        for device in ("CPU-0", "CPU-1"):
            assert neuron.ctl("load", "m", "--device", device).returncode == 0
        url = f"{gateway.url}/v1/chat/completions"
        streams = {p: Stream(url, chat("m", p, max_tokens=600)) for p in (f"prompt {i}" for i in range(200))}
        for stream in streams.values():
            assert stream.started.wait(60)
        status = neuron.status()
        pids = [psutil.Process(d["worker_pid"]) for d in status["state"]["devices"]]
        running = {d["uuid"]: sum(j["device"] == d["uuid"] for j in status["jobs"]) for d in status["state"]["devices"]}
        assert min(running.values()) >= 50, running
        pids[0].kill()
        pauses = [check(stream.finish(200), prompt, 600) for prompt, stream in streams.items()]
        neuron.wait_for(lambda s: s["jobs"] == [])
        assert is_alive(pids[1])
        assert httpx.post(url, json=chat("m", "next", max_tokens=3), timeout=30).status_code == 200
    keep("two-hundred-streams", whole=len(pauses), **spread(pauses))
