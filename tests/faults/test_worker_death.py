"""A worker dies: only its own requests notice, and everything is back at once."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from common.messages import Failed, Submit, Tokens
from tests.faults.test_bus import Peer, job
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron, wait_gone
from tests.support.streams import Stream, chat

TWO_DEVICES = [{"kind": "cpu", "memory_mb": 1024, "threads": 1}, {"kind": "cpu", "memory_mb": 1024, "threads": 1}]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Neuron, Gateway]]:
    """Two fake models of slow, endless streams, one on each of two devices."""
    models = [
        {
            "id": name,
            "source": f"file:{write_model(tmp_path / f'{name}.json', token_s=0.02, load_s=0.2)}",
            "vram_mb": 600,
        }
        for name in ("left", "right")
    ]
    with (
        Neuron(tmp_path / "neuron", devices=TWO_DEVICES, models=models, engine="tests.support.fake_engine",
               preload=["left", "right"]) as neuron,
        Gateway(tmp_path / "gateway", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        neuron.wait_for(lambda s: [m["status"] for m in s["state"]["models"]] == ["loaded", "loaded"])
        yield neuron, gateway


def worker_of(neuron: Neuron, model: str) -> tuple[str, int]:
    """Return (device, pid) of the worker that holds a model."""
    state = neuron.status()["state"]
    device = next(m for m in state["models"] if m["id"] == model)["replicas"][0]["device"]
    return device, next(d for d in state["devices"] if d["uuid"] == device)["worker_pid"]


def undisturbed_answer(gateway: Gateway, model: str, prompt: str, max_tokens: int = 300) -> list[str]:
    """Return what the fake engine says if nothing happens: its tokens are a function of prompt and place."""
    body = chat(model, prompt, max_tokens=max_tokens)
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60).json()
    return str(answer["choices"][0]["message"]["content"]).split()


def is_loaded(status: dict, model: str) -> bool:  # type: ignore[type-arg]
    return any(m["id"] == model and m["status"] == "loaded" for m in status["state"]["models"])


@pytest.mark.alone
def test_the_other_devices_stream_does_not_notice_and_the_dead_ones_goes_on(
    fleet: tuple[Neuron, Gateway],
) -> None:
    neuron, gateway = fleet
    url = f"{gateway.url}/v1/chat/completions"
    device, pid = worker_of(neuron, "left")
    supervisor = neuron.pid
    left, right = Stream(url, chat("left", "one", max_tokens=300)), Stream(url, chat("right", "two", max_tokens=300))
    assert left.started.wait(10)
    assert right.started.wait(10)
    time.sleep(2.0)  # the undisturbed half of the comparison
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    dead, alive = left.finish(), right.finish()

    assert dead.done
    assert dead.finish_reason == "length"
    assert dead.text.split() == undisturbed_answer(gateway, "left", "one")
    assert alive.done
    assert alive.finish_reason == "length"
    assert len(alive.text.split()) == 300
    undisturbed = sorted(alive.gaps(end=killed_at))
    p99 = undisturbed[int(len(undisturbed) * 0.99)]
    assert max(alive.gaps(start=killed_at)) <= max(0.05, 3 * p99)
    assert neuron.pid == supervisor
    assert psutil.pid_exists(supervisor)
    device_state = next(d for d in neuron.status()["state"]["devices"] if d["uuid"] == device)
    assert device_state["restarts"] == 1
    assert device_state["worker_pid"] != pid


@pytest.mark.alone
def test_the_end_of_a_worker_is_told_within_a_tenth_of_a_second(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, _ = fleet
    with Peer(neuron) as peer:
        peer.hello()
        for number in range(5):
            neuron.wait_for(lambda s: is_loaded(s, "left"))
            peer.send(Submit(jobs=[job(f"p{number}", model="left", max_tokens=1000)]))
            peer.receive(Tokens)
            _, pid = worker_of(neuron, "left")
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            assert peer.receive(Failed).items[0].code == "worker_died"
            assert time.monotonic() - killed_at < 0.1


@pytest.mark.alone
def test_the_dead_workers_model_answers_again_within_its_load_time_and_half_a_second(
    fleet: tuple[Neuron, Gateway],
) -> None:
    neuron, gateway = fleet
    device, pid = worker_of(neuron, "left")
    # The load time is from spawn to ready of an undisturbed start with that model.
    began = time.monotonic()
    neuron.ctl("restart", device)
    neuron.wait_for(lambda s: is_loaded(s, "left") and worker_of(neuron, "left")[1] != pid)
    load_s = time.monotonic() - began
    _, pid = worker_of(neuron, "left")
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat("left", "x", max_tokens=1), timeout=30)
    if answer.status_code == 503:  # sent before the death was seen
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat("left", "x", max_tokens=1), timeout=30)
    assert answer.status_code == 200
    assert time.monotonic() - killed_at <= load_s + 0.5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_every_slot_and_promise_is_returned_whatever_kills_the_worker(
    fleet: tuple[Neuron, Gateway], number: signal.Signals
) -> None:
    neuron, gateway = fleet
    url = f"{gateway.url}/v1/chat/completions"
    streams = [Stream(url, chat("left", f"prompt {i}", max_tokens=60)) for i in range(8)]
    for stream in streams:
        assert stream.started.wait(10)
    os.kill(worker_of(neuron, "left")[1], number)
    for i, stream in enumerate(streams):
        reading = stream.finish()
        assert reading.done
        assert reading.text.split() == undisturbed_answer(gateway, "left", f"prompt {i}", 60)
    status = neuron.wait_for(lambda s: is_loaded(s, "left"))
    assert status["jobs"] == []
    assert httpx.post(url, json=chat("left", "next", max_tokens=3), timeout=30).status_code == 200


def test_queued_requests_outlive_the_worker(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}"
    models = [{"id": "m", "source": source, "parallel": 1, "vram_mb": 100}]
    with (
        Neuron(tmp_path / "n", devices=TWO_DEVICES[:1], models=models, engine="tests.support.fake_engine") as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        url = f"{gateway.url}/v1/chat/completions"
        running = Stream(url, chat("m", "a", max_tokens=100))
        assert running.started.wait(10)
        queued = Stream(url, chat("m", "b", max_tokens=5))
        neuron.wait_for(lambda s: sorted(j["state"] for j in s["jobs"]) == ["queued", "running"])
        os.kill(worker_of(neuron, "m")[1], signal.SIGKILL)
        assert running.finish().finish_reason == "length"
        assert queued.finish().finish_reason == "length"


def test_a_stopped_worker_is_found_by_its_silence_and_replaced(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}"
    with (
        Neuron(tmp_path / "n", devices=TWO_DEVICES[:1], models=[{"id": "m", "source": source, "vram_mb": 100}],
               engine="tests.support.fake_engine", watchdog={"step_s": 1.0, "idle_s": 1.5, "term_s": 0.3}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        stream = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "a", max_tokens=100))
        assert stream.started.wait(10)
        _, pid = worker_of(neuron, "m")
        os.kill(pid, signal.SIGSTOP)
        reading = stream.finish(20)
        assert reading.text.split() == undisturbed_answer(gateway, "m", "a", 100)
        assert 1.0 <= max(reading.gaps()) < 5.0, "the limit, the time to obey a SIGTERM, and a load"
        assert not psutil.pid_exists(pid)
        neuron.wait_for(lambda s: is_loaded(s, "m"))


def test_a_killed_supervisor_leaves_no_process_behind(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, _ = fleet
    children = psutil.Process(neuron.pid).children(recursive=True)
    assert len(children) >= 3  # two workers and prep
    neuron.kill(signal.SIGKILL)
    assert wait_gone(children, 1.0) == []


def test_a_model_whose_load_ends_workers_is_given_up_and_takes_no_device_with_it(tmp_path: Path) -> None:
    bad = f"file:{write_model(tmp_path / 'bad.json', crash_at_load=True)}"
    good = f"file:{write_model(tmp_path / 'good.json')}"
    models = [{"id": "bad", "source": bad, "vram_mb": 900}, {"id": "good", "source": good, "vram_mb": 900}]
    with (
        Neuron(tmp_path / "n", devices=TWO_DEVICES, models=models, engine="tests.support.fake_engine",
               preload=["good"], restart={"backoff_s": 0.05, "quarantine_after": 3}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        url = f"{gateway.url}/v1/chat/completions"
        neuron.wait_for(lambda s: is_loaded(s, "good"))
        answer = httpx.post(url, json=chat("bad", "x", max_tokens=3), timeout=30)
        assert answer.json()["error"]["code"] == "model_loading_failed"
        assert "ended 2 workers" in answer.json()["error"]["message"]
        status = neuron.wait_for(lambda s: {d["state"] for d in s["state"]["devices"]} == {"ready"})
        assert {m["id"]: m["status"] for m in status["state"]["models"]} == {"bad": "failed", "good": "loaded"}
        assert httpx.post(url, json=chat("good", "x", max_tokens=3), timeout=30).status_code == 200


def poison(tmp_path: Path, name: str, **knobs: int) -> dict[str, object]:
    """Return a model whose workers die of prompts with the word `poison`."""
    path = write_model(tmp_path / f"{name}.json", token_s=0.01, only_for="poison", **knobs)
    return {"id": name, "source": f"file:{path}", "vram_mb": 100, "parallel": 8}


@pytest.mark.parametrize(
    "way",
    ["segfault_at", *(pytest.param(w, marks=pytest.mark.long) for w in ("abort_at", "exit_at", "lose_device_at"))],
)
def test_a_request_that_kills_every_worker_it_meets_meets_two(tmp_path: Path, way: str) -> None:
    with (
        Neuron(tmp_path / "a", name="a", devices=TWO_DEVICES[:1], models=[poison(tmp_path, "m", **{way: 5})],
               preload=["m"], engine="tests.support.fake_engine") as first,
        Neuron(tmp_path / "b", name="b", devices=TWO_DEVICES[:1], models=[poison(tmp_path, "m", **{way: 5})],
               preload=["m"], engine="tests.support.fake_engine") as second,
        Gateway(tmp_path / "g", neurons=[first, second]) as gateway,
    ):  # fmt: skip
        url = f"{gateway.url}/v1/chat/completions"
        for neuron in (first, second):
            neuron.wait_for(lambda s: is_loaded(s, "m"))
        others = [Stream(url, chat("m", f"prompt {i}", max_tokens=150)) for i in range(4)]
        for stream in others:
            assert stream.started.wait(10)
        bad = Stream(url, chat("m", "some poison", max_tokens=20)).finish(30)
        assert bad.error is not None
        assert bad.error["code"] == "poisoned_request"
        for i, stream in enumerate(others):
            assert stream.finish().text.split() == undisturbed_answer(gateway, "m", f"prompt {i}", 150)
        states = [n.wait_for(lambda s: s["jobs"] == []) for n in (first, second)]
        assert sum(d["restarts"] for s in states for d in s["state"]["devices"]) == 2
        again = httpx.post(url, json=chat("m", "some poison", max_tokens=20), timeout=30)
        assert (again.status_code, again.json()["error"]["code"]) == (400, "poisoned_request")
        assert sum(d["restarts"] for n in (first, second) for d in n.status()["state"]["devices"]) == 2


def test_a_poison_that_hides_in_a_batch_is_found_and_the_others_end_well(tmp_path: Path) -> None:
    with (
        Neuron(tmp_path / "n", devices=TWO_DEVICES[:1], models=[poison(tmp_path, "m", kill_batch_at=5)],
               preload=["m"], engine="tests.support.fake_engine", restart={"backoff_s": 0.05}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        url = f"{gateway.url}/v1/chat/completions"
        neuron.wait_for(lambda s: is_loaded(s, "m"))
        others = [Stream(url, chat("m", f"prompt {i}", max_tokens=200)) for i in range(4)]
        for stream in others:
            assert stream.started.wait(10)
        bad = Stream(url, chat("m", "some poison", max_tokens=20)).finish(60)
        assert bad.error is not None
        assert bad.error["code"] == "poisoned_request"
        for i, stream in enumerate(others):
            assert stream.finish().text.split() == undisturbed_answer(gateway, "m", f"prompt {i}", 200)
        status = neuron.wait_for(lambda s: s["jobs"] == [])
        assert status["state"]["devices"][0]["restarts"] == 3


def test_a_worker_that_somebody_stops_again_and_again_convicts_no_request(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}"
    with (
        Neuron(tmp_path / "n", devices=TWO_DEVICES[:1], models=[{"id": "m", "source": source, "vram_mb": 100}],
               engine="tests.support.fake_engine", watchdog={"step_s": 0.5, "idle_s": 1.5, "term_s": 0.2}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        stream = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "a", max_tokens=400))
        assert stream.started.wait(10)
        deadline = time.monotonic() + 60
        for restarts in (1, 2):
            seen = len(stream.reading.text)
            os.kill(worker_of(neuron, "m")[1], signal.SIGSTOP)
            while neuron.status()["state"]["devices"][0]["restarts"] < restarts or len(stream.reading.text) == seen:
                assert time.monotonic() < deadline
                assert stream.is_alive()
                time.sleep(0.02)
        reading = stream.finish(30)
        assert (reading.error, reading.text.split()) == (None, undisturbed_answer(gateway, "m", "a", 400))
