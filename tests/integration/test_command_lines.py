"""neuronctl and cortex as an operator uses them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.capture.store import Store
from tests.support.fake_engine import write_model
from tests.support.harness import ADMIN_KEY, ROOT, Gateway, Neuron, free_port
from tests.support.streams import Stream, chat

TWO = [{"kind": "cpu", "memory_mb": 500, "threads": 1}, {"kind": "cpu", "memory_mb": 500, "threads": 1}]


@pytest.fixture
def neuron(tmp_path: Path) -> Iterator[Neuron]:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.01)}"
    models = [{"id": "m", "source": source, "vram_mb": 200, "context": 2000}]
    with Neuron(
        tmp_path / "n", devices=TWO, models=models, aliases={"short": "m"}, engine="tests.support.fake_engine"
    ) as started:
        yield started


def cortex(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    plain = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return subprocess.run(
        [sys.executable, "-m", "cortex", *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env={**plain, **environment},
    )  # fmt: skip


def test_load_status_unload_and_their_exit_codes(neuron: Neuron) -> None:
    assert neuron.ctl("load", "short").stdout == "m is loaded on CPU-0 in 0.0 s\n"
    assert neuron.ctl("load", "m", "--device", "CPU-1").returncode == 0
    shown = neuron.ctl("status").stdout
    assert "beast: serving" in shown
    assert "CPU-0, CPU-1" in shown
    assert "no jobs" in shown
    assert neuron.ctl("unload", "m").returncode == 0
    assert "unloaded" in neuron.ctl("models").stdout
    assert neuron.ctl("unload", "m").stdout == "m is not loaded\n"
    refused = neuron.ctl("load", "nope")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no model 'nope' here; known: m" in refused.stderr
    refused = neuron.ctl("load", "m", "--device", "GPU-7")
    assert refused.returncode == 1
    assert "there are: CPU-0, CPU-1" in refused.stderr


def test_what_happened_is_told_with_its_reasons_and_a_request_is_cancelled_by_its_id(
    neuron: Neuron, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "c", neurons=[neuron]) as gateway:
        stream = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "hello", max_tokens=1500))
        assert stream.started.wait(20)
        (row,) = json.loads(neuron.ctl("requests", "--json").stdout)
        assert (row["job"]["model"], row["progress"]["phase"]) == ("m", "decode")
        assert "1 jobs of" in neuron.ctl("requests", "cancel", row["job"]["request_id"]).stdout
        error = stream.finish(20).error
        assert error is not None
        assert "cancelled by an administrator" in error["message"]
    os.kill(neuron.status()["state"]["devices"][0]["worker_pid"], 9)
    neuron.wait_for(lambda s: s["state"]["devices"][0]["restarts"] == 1)
    events = neuron.ctl("events").stdout
    assert "CPU-0: worker ended: signal SIGKILL" in events
    assert "request cancelled: an admin" in events
    assert "m on CPU-0: model loaded" in events
    assert neuron.ctl("logs", "CPU-0").returncode == 0
    assert "there are: CPU-0, CPU-1" in neuron.ctl("logs", "GPU-7").stderr
    assert "beast  serving" in neuron.ctl("top", "--once", "--interval", "0.1").stdout


def test_a_request_that_is_kept_is_sent_again_and_says_the_same(neuron: Neuron, tmp_path: Path) -> None:
    with Gateway(tmp_path / "c", neurons=[neuron], sections={"capture": {"folder": "kept"}}) as gateway:
        body = chat("m", "hello", max_tokens=20)
        Stream(f"{gateway.url}/v1/chat/completions", body).finish()
        store = Store(tmp_path / "c" / "kept", keep=10, expire_s=60.0)
        deadline = time.monotonic() + 20
        while not store.all():
            assert time.monotonic() < deadline, gateway.log
            time.sleep(0.02)
        (captured,) = store.all()
        (job,) = captured.jobs
        assert (job.tokens, job.reason) == (20, "length")
        assert job.prompt is not None
        assert "hello" in job.prompt
        assert captured.reply.endswith("data: [DONE]\n\n")
        again = cortex("replay", captured.id, "--config", str(tmp_path / "c" / "cortex.yaml"))
        assert (again.returncode, again.stdout.strip()) == (0, job.raw.strip())
        assert "said the same" in again.stderr


@pytest.mark.parametrize(
    "command", ["status", "models", "devices", "health", "memory", "version", "clear-cache", "undrain"]
)
def test_every_command_speaks_json_on_either_side_of_its_name(neuron: Neuron, command: str) -> None:
    after, before = neuron.ctl(command, "--json"), neuron.ctl("--json", command)
    assert after.returncode == before.returncode == 0
    assert json.loads(after.stdout).keys() == json.loads(before.stdout).keys()


def test_jobs_are_shown_while_they_run(neuron: Neuron, tmp_path: Path) -> None:
    with Gateway(tmp_path / "g", neurons=[neuron]) as gateway:
        stream = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "x"))
        assert stream.started.wait(10)
        shown = neuron.ctl("status").stdout
        assert "running" in shown
        assert "req_" in shown
        stream.stop()


def test_a_drain_waits_and_an_undrain_serves_again(neuron: Neuron, tmp_path: Path) -> None:
    with Gateway(tmp_path / "g", neurons=[neuron]) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        stream = Stream(url, chat("m", "x", max_tokens=150))
        assert stream.started.wait(10)
        began = time.monotonic()
        drained = neuron.ctl("drain", "--device", "CPU-0")
        assert drained.stdout == "CPU-0 is drained, its worker has ended\n"
        assert time.monotonic() - began > 0.3
        assert stream.finish().finish_reason == "length"
        assert "stopped" in neuron.ctl("devices").stdout
        assert neuron.ctl("health").stdout.startswith("impaired\n  CPU-0: draining")
        assert neuron.ctl("undrain", "--device", "CPU-0").returncode == 0
        neuron.wait_for(lambda s: [d["state"] for d in s["state"]["devices"]] == ["ready", "ready"])
        assert Stream(url, chat("m", "y", max_tokens=2)).finish().done


def test_a_restart_gives_the_device_a_new_process(neuron: Neuron) -> None:
    before = neuron.status()["state"]["devices"][0]["worker_pid"]
    assert "has a new worker" in neuron.ctl("restart", "CPU-0").stdout
    after = neuron.status()["state"]["devices"][0]
    assert after["worker_pid"] not in (None, before)
    assert after["restarts"] == 0


def test_a_load_shows_its_end_while_it_takes_time(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', load_s=1.0)}"
    with Neuron(tmp_path / "n", models=[{"id": "m", "source": source}], engine="tests.support.fake_engine") as neuron:
        seen: list[float] = []

        def watch() -> None:
            while not seen or neuron.status()["state"]["models"][0]["status"] != "loaded":
                replicas = neuron.status()["state"]["models"][0]["replicas"]
                seen.append(replicas[0]["progress"] or 0.0 if replicas else 0.0)
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert neuron.ctl("--timeout", "0.4", "load", "m").returncode == 0
        watcher.join()
        assert any(0.2 < p < 1.0 for p in seen)


def test_nobody_answering_is_said_with_exit_status_3() -> None:
    command = [
        sys.executable,
        "-m",
        "neuron.ctl",
        "--endpoint",
        f"127.0.0.1:{free_port()}",
        "--timeout",
        "0.3",
        "status",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, cwd=ROOT)
    assert done.returncode == 3
    assert "no neuron answers" in done.stderr
    done = cortex("status", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert "no gateway answers" in done.stderr


def test_wrong_usage_is_exit_status_2(neuron: Neuron) -> None:
    assert neuron.ctl("lod", "m").returncode == 2
    assert neuron.ctl("load").returncode == 2
    assert neuron.ctl("--endpoint", "nowhere", "status").returncode == 2
    assert cortex("stats").returncode == 2


def test_the_fleet_is_shown_with_the_key_from_the_environment_or_the_configuration(
    neuron: Neuron, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "g", neurons=[neuron]) as gateway:
        refused = cortex("status", "--url", gateway.url)
        assert refused.returncode == 1
        assert "CORTEX_ADMIN_KEY" in refused.stderr
        by_variable = cortex("status", "--url", gateway.url, CORTEX_ADMIN_KEY=ADMIN_KEY)
        by_file = cortex("status", "--config", str(tmp_path / "g" / "cortex.yaml"))
        assert by_variable.returncode == by_file.returncode == 0
        assert by_variable.stdout == by_file.stdout
        assert f"beast at 127.0.0.1:{neuron.port}: up" in by_variable.stdout or "beast at tcp://" in by_variable.stdout
        assert "CPU-1" in by_variable.stdout
        as_json = cortex("status", "--json", "--config", str(tmp_path / "g" / "cortex.yaml"))
        assert json.loads(as_json.stdout)["nodes"][0]["name"] == "beast"
        models = cortex("models", "--url", gateway.url)
        assert models.returncode == 0
        assert "short" in models.stdout


def test_a_gateway_without_admin_keys_has_no_admin_interface(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "g", admin_keys=[])
    try:
        gateway._wait(lambda: "listening" in gateway.log, "gateway")
        done = cortex("status", "--url", gateway.url)
        assert done.returncode == 1
        assert "set gateway.admin_keys" in done.stderr
    finally:
        gateway.stop()


@pytest.mark.parametrize("program", [["cortex"], ["cortex", "dev"], ["cortex", "serve"], ["neuron"], ["neuron.ctl"]])
def test_help_teaches(program: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *program, "--help"], capture_output=True, text=True, timeout=20, check=True, cwd=ROOT
    )
    assert "usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 5
