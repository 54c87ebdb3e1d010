"""The list of faults, one by one: after each every job has ended, nothing is held, and the next one is served."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.broken_engine import THREADS
from tests.support.fake_engine import answer, text_of, tokenise, write_model
from tests.support.harness import ROOT, Gateway, Neuron, wait_gone
from tests.support.streams import Reading, Stream, chat

CPU = {"kind": "cpu", "memory_mb": 2048, "threads": 1}
ENGINE = "tests.support.fake_engine"
KNOBS: dict[str, dict[str, Any]] = {
    "m": {"token_s": 0.01},
    "slow-load": {"load_s": 1.0, "token_s": 0.01},
    "slow-prompt": {"prefill_token_s": 0.012, "token_s": 0.01},
    "no-memory": {"oom_at_load": True},
    "few-cells": {"real_kv_tokens": 150, "token_s": 0.002},
    "stubborn": {"ignore_sigterm": True, "hang_at": 5, "only_for": "hang"},
    "parent": {"leave_grandchild": True, "token_s": 0.01},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Gateway]]:
    folder = tmp_path_factory.mktemp("list")
    models = [
        {"id": name, "source": f"file:{write_model(folder / f'{name}.json', **knobs)}", "vram_mb": 100}
        for name, knobs in KNOBS.items()
    ]
    with (
        Neuron(folder / "n", devices=[CPU], models=models, engine=ENGINE, state_dir=str(folder / "state"),
               restart={"backoff_s": 0.01, "quarantine_after": 50},
               watchdog={"step_s": 2.0, "idle_s": 2.0, "term_s": 0.3}) as neuron,
        Gateway(folder / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        yield neuron, gateway


@pytest.fixture(autouse=True)
def balance(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each fault on the shared fleet: nothing is held, and the next request is served."""
    yield
    if "fleet" not in request.fixturenames:
        return
    neuron, gateway = request.getfixturevalue("fleet")
    neuron.wait_for(lambda s: s["jobs"] == [])
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat("m", "next", max_tokens=5), timeout=60)
    assert reply.json()["choices"][0]["message"]["content"] == expected("next", 5)
    state = neuron.wait_for(lambda s: s["jobs"] == [])["state"]
    assert all(not r["running"] for m in state["models"] for r in m["replicas"])
    assert len(psutil.Process(neuron.pid).children()) == 2, "a worker and prep"


def expected(prompt: str, count: int) -> str:
    return text_of(answer(tokenise(f"user: {prompt}"), count))


def check(reading: Reading, prompt: str, count: int) -> None:
    assert (reading.status, reading.done, reading.error) == (200, True, None)
    assert reading.text == expected(prompt, count)


def url(gateway: Gateway) -> str:
    return f"{gateway.url}/v1/chat/completions"


def worker_pid(neuron: Neuron) -> int:
    status = neuron.wait_for(lambda s: s["state"]["devices"][0]["state"] == "ready")
    pid: int = status["state"]["devices"][0]["worker_pid"]
    return pid


def restarts(neuron: Neuron) -> int:
    count: int = neuron.status()["state"]["devices"][0]["restarts"]
    return count


Both = tuple[Neuron, Gateway]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_idle_worker_is_replaced(fleet: Both, number: signal.Signals) -> None:
    neuron, _ = fleet
    before = restarts(neuron)
    os.kill(worker_pid(neuron), number)
    neuron.wait_for(lambda s: s["state"]["devices"][0]["restarts"] > before)


def test_a_worker_killed_while_it_loads_loads_again_for_the_request_that_waits(fleet: Both) -> None:
    neuron, gateway = fleet
    stream = Stream(url(gateway), chat("slow-load", "a", max_tokens=10))
    neuron.wait_for(lambda s: any(m["id"] == "slow-load" and m["status"] == "loading" for m in s["state"]["models"]))
    os.kill(worker_pid(neuron), signal.SIGKILL)
    check(stream.finish(30), "a", 10)


def test_a_worker_killed_in_mid_prompt_begins_it_again(fleet: Both) -> None:
    neuron, gateway = fleet
    prompt = " ".join(f"w{i}" for i in range(100))
    stream = Stream(url(gateway), chat("slow-prompt", prompt, max_tokens=10))
    neuron.wait_for(lambda s: s["state"]["devices"][0]["phase"] in ("warming", "prefill"))
    os.kill(worker_pid(neuron), signal.SIGKILL)
    check(stream.finish(30), prompt, 10)


def test_a_long_prompt_is_no_hang_and_neither_lists_nor_streams_wait_for_it(fleet: Both) -> None:
    neuron, gateway = fleet
    before = restarts(neuron)
    beside = Stream(url(gateway), chat("m", "beside", max_tokens=300))
    assert beside.started.wait(20)
    prompt = " ".join(f"w{i}" for i in range(400))  # two and a half times as long as a step may take
    stream = Stream(url(gateway), chat("slow-prompt", prompt, max_tokens=10))
    neuron.wait_for(lambda s: s["state"]["devices"][0]["phase"] in ("warming", "prefill"))
    assert httpx.get(f"{gateway.url}/v1/models", timeout=1.0).status_code == 200
    assert neuron.status(timeout_s=1.0)["jobs"]
    assert stream.reading.text == ""
    check(beside.finish(60), "beside", 300)
    check(stream.finish(60), prompt, 10)
    assert restarts(neuron) == before


def test_a_client_that_goes_while_its_model_loads_leaves_nothing_behind(fleet: Both) -> None:
    neuron, gateway = fleet
    assert neuron.ctl("unload", "slow-load").returncode == 0
    body = json.dumps(chat("slow-load", "gone", max_tokens=1000, stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head + body)
        neuron.wait_for(
            lambda s: s["jobs"] != [] and any(m["id"] == "slow-load" and m["status"] == "loading"
                                              for m in s["state"]["models"])
        )  # fmt: skip
    neuron.wait_for(lambda s: s["jobs"] == [], timeout_s=0.9)


def test_nothing_but_silence_ends_a_stream_however_long_it_is(fleet: Both, tmp_path: Path) -> None:
    neuron, _ = fleet
    with Gateway(tmp_path, neurons=[neuron], budget_s=1.0, recovery_s=1.0, drain_s=0.0) as hasty:
        check(Stream(url(hasty), chat("m", "long", max_tokens=400)).finish(30), "long", 400)


def test_memory_that_ends_in_a_load_is_that_models_failure_alone(fleet: Both) -> None:
    neuron, gateway = fleet
    before = restarts(neuron)
    reply = httpx.post(url(gateway), json=chat("no-memory", "a"), timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading_failed")
    assert "out of memory" in reply.json()["error"]["message"]
    assert restarts(neuron) == before


def test_memory_that_ends_while_decoding_costs_turns_and_no_answer(fleet: Both) -> None:
    neuron, gateway = fleet
    before = restarts(neuron)
    streams = {p: Stream(url(gateway), chat("few-cells", p, max_tokens=60)) for p in ("a", "b", "c", "d")}
    for prompt, stream in streams.items():
        check(stream.finish(60), prompt, 60)
    assert restarts(neuron) == before


def test_a_hang_that_ignores_sigterm_is_killed_and_found_to_be_the_requests_doing(fleet: Both) -> None:
    _, gateway = fleet
    beside = Stream(url(gateway), chat("m", "beside", max_tokens=300))
    assert beside.started.wait(20)
    reading = Stream(url(gateway), chat("stubborn", "please hang", max_tokens=20)).finish(60)
    assert reading.error is not None
    assert reading.error["code"] == "poisoned_request"
    check(beside.finish(60), "beside", 300)
    reply = httpx.post(url(gateway), json=chat("stubborn", "do not", max_tokens=20), timeout=30)
    assert reply.status_code == 200


def test_a_grandchild_that_keeps_all_open_goes_with_its_worker(fleet: Both) -> None:
    neuron, gateway = fleet
    stream = Stream(url(gateway), chat("parent", "a", max_tokens=100))
    assert stream.started.wait(20)
    worker = psutil.Process(worker_pid(neuron))
    grandchildren = worker.children()
    assert grandchildren
    worker.kill()
    check(stream.finish(30), "a", 100)
    assert wait_gone(grandchildren, 2.0) == []
    assert neuron.ctl("unload", "parent").returncode == 0
    neuron.ctl("restart", "CPU-0")


def test_a_supervisor_whose_loop_stood_still_goes_on(fleet: Both) -> None:
    neuron, gateway = fleet
    before = restarts(neuron)
    stream = Stream(url(gateway), chat("m", "a", max_tokens=200))
    assert stream.started.wait(20)
    supervisor = psutil.Process(neuron.pid)
    supervisor.suspend()
    time.sleep(5.0)  # longer than the lease and every limit here, shorter than until the neuron is given up
    supervisor.resume()
    check(stream.finish(30), "a", 200)
    assert restarts(neuron) == before


def test_a_supervisor_out_of_file_descriptors_serves_those_it_has_and_recovers(fleet: Both) -> None:
    neuron, gateway = fleet
    supervisor = psutil.Process(neuron.pid)
    limits = supervisor.rlimit(resource.RLIMIT_NOFILE)
    stream = Stream(url(gateway), chat("m", "a", max_tokens=100))
    assert stream.started.wait(20)
    supervisor.rlimit(resource.RLIMIT_NOFILE, (supervisor.num_fds(), limits[1]))
    try:
        check(stream.finish(30), "a", 100)
        before = restarts_of(neuron, gateway)
        os.kill(before[1], signal.SIGKILL)  # no pipe can be made for the next one
        time.sleep(0.5)
    finally:
        supervisor.rlimit(resource.RLIMIT_NOFILE, limits)
    neuron.wait_for(lambda s: s["state"]["devices"][0]["state"] == "ready")


def restarts_of(neuron: Neuron, gateway: Gateway) -> tuple[int, int]:
    """Return (restarts, pid) as the gateway has heard them; a starved neuron takes no new connection."""
    fleet = httpx.get(f"{gateway.url}/fleet/status", headers={"Authorization": "Bearer test-admin-key-0123456789"})
    device = fleet.json()["nodes"][0]["state"]["devices"][0]
    return device["restarts"], device["worker_pid"]


def test_a_full_disk_costs_the_saved_state_and_nothing_else(fleet: Both) -> None:
    neuron, gateway = fleet
    supervisor = psutil.Process(neuron.pid)
    limits = supervisor.rlimit(resource.RLIMIT_FSIZE)
    supervisor.rlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert neuron.ctl("pin", "m").returncode == 0
        reading = Stream(url(gateway), chat("m", "full", max_tokens=150)).finish(30)
        check(reading, "full", 150)
    finally:
        supervisor.rlimit(resource.RLIMIT_FSIZE, limits)
    assert neuron.ctl("unpin", "m").returncode == 0


def test_a_gateway_process_killed_under_load_leaves_the_neuron_with_balanced_books(fleet: Both) -> None:
    neuron, gateway = fleet
    streams = [Stream(url(gateway), chat("m", f"p{i}", max_tokens=2000)) for i in range(3)]
    for stream in streams:
        assert stream.started.wait(20)
    [process] = psutil.Process(gateway.pid).children()
    process.kill()
    neuron.wait_for(lambda s: s["jobs"] == [], timeout_s=7.0)  # its lease
    for stream in streams:
        assert stream.finish(30).done is False
    deadline = time.monotonic() + 20
    while not gateway._answers():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_abort_that_races_the_end_frees_everything(fleet: Both) -> None:
    neuron, gateway = fleet

    def ask_and_leave(number: int) -> None:
        stream = Stream(url(gateway), chat("m", f"race {number}", max_tokens=3))
        time.sleep(0.002 * number)
        stream.stop()

    threads = [threading.Thread(target=ask_and_leave, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    neuron.wait_for(lambda s: s["jobs"] == [])


def test_a_supervisor_killed_under_load_answers_and_recovers_with_its_next_life(tmp_path: Path) -> None:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}", "vram_mb": 100}]
    first = Neuron(tmp_path / "n", devices=[CPU], models=models, engine=ENGINE)
    with Gateway(tmp_path / "g", neurons=[first.__enter__()]) as gateway:
        streams = {p: Stream(url(gateway), chat("m", p, max_tokens=100)) for p in ("a", "b", "c")}
        for stream in streams.values():
            assert stream.started.wait(20)
        family = psutil.Process(first.pid).children(recursive=True)
        first.kill(signal.SIGKILL)
        first.process.wait(5)
        assert wait_gone(family, 1.0) == []
        assert httpx.get(f"{gateway.url}/livez", timeout=5).status_code == 200
        with Neuron(tmp_path / "n", port=first.port, devices=[CPU], models=models, engine=ENGINE) as second:
            for prompt, stream in streams.items():
                check(stream.finish(60), prompt, 100)
            assert second.status()["jobs"] == []


def test_a_neuron_that_is_told_to_stop_while_it_drains_hands_its_stream_over(tmp_path: Path) -> None:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}", "vram_mb": 100}]
    with (
        Neuron(tmp_path / "a", name="a", devices=[CPU], models=models, engine=ENGINE, preload=["m"]) as first,
        Neuron(tmp_path / "b", name="b", devices=[CPU], models=models, engine=ENGINE, preload=["m"]) as second,
        Gateway(tmp_path / "g", neurons=[first, second]) as gateway,
    ):
        for neuron in (first, second):
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        stream = Stream(url(gateway), chat("m", "drained", max_tokens=600))
        assert stream.started.wait(20)
        [holder] = [n for n in (first, second) if n.status()["jobs"]]
        command = [sys.executable, "-m", "neuron.ctl", "--endpoint", holder.endpoint, "drain"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as drain:
            holder.wait_for(lambda s: s["state"]["state"] == "draining")
            assert holder.status()["jobs"], "a drain ends no stream"
            assert holder.stop() == 0
            assert drain.wait(10) == 0, "nothing runs there any more"
        check(stream.finish(30), "drained", 600)


def test_workers_that_end_at_boot_are_quarantined_and_the_daemon_is_fine(tmp_path: Path) -> None:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json')}", "vram_mb": 100}]
    devices = [{"kind": "cpu", "memory_mb": 500, "threads": THREADS}, CPU]
    with (
        Neuron(tmp_path / "n", devices=devices, models=models, engine="tests.support.broken_engine",
               restart={"backoff_s": 0.01, "quarantine_after": 3}) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):  # fmt: skip
        state = neuron.wait_for(lambda s: s["state"]["devices"][0]["state"] == "quarantined")["state"]
        assert "status 9" in state["devices"][0]["reason"]
        reply = httpx.post(url(gateway), json=chat("m", "a", max_tokens=5), timeout=30)
        assert reply.json()["choices"][0]["message"]["content"] == expected("a", 5)
