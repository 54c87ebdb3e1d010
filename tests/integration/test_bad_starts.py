"""What is wrong at the start is said in one clear line, and what can go on goes on."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.fake_engine import write_model
from tests.support.harness import DEMO_MODEL, ROOT, Gateway, Neuron, free_port
from tests.support.streams import Stream, chat


def run(*arguments: str, timeout_s: float = 30.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
    )


def write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_taken_port_ends_either_daemon_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cpu = [{"kind": "cpu", "memory_mb": 100}]
        neuron = run("neuron", "--config", write(tmp_path / "neuron.yaml", {"listen": address, "devices": cpu}))
        gateway = run("cortex", "serve", "--config", write(tmp_path / "cortex.yaml", {"gateway": {"listen": address}}))
    for done in (neuron, gateway):
        assert done.returncode == 1
        assert address in done.stderr
        assert "in use" in done.stderr.lower()
        assert "Traceback" not in done.stderr
    assert "gateway.listen" in gateway.stderr


@pytest.mark.parametrize(
    ("program", "name", "content", "words"),
    [
        (["neuron"], "neuron.yaml", {"devces": "auto"}, "devces: unknown key; allowed here"),
        (["cortex", "serve"], "cortex.yaml", {"gateway": {"worker": 2}}, "gateway.worker: unknown key"),
        (["cortex", "serve"], "cortex.yaml", {"neurons": [{"name": "a", "endpoint": "b"}]}, "neurons[0].endpoint"),
    ],
)
def test_a_bad_configuration_ends_a_daemon_with_file_key_and_choices(
    tmp_path: Path, program: list[str], name: str, content: object, words: str
) -> None:
    done = run(*program, "--config", write(tmp_path / name, content))
    assert done.returncode == 1
    assert words in done.stderr
    assert str(tmp_path / name) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_is_said_in_a_line(tmp_path: Path) -> None:
    for program in (["neuron"], ["cortex", "serve"]):
        done = run(*program, "--config", str(tmp_path / "absent.yaml"))
        assert done.returncode == 1
        assert "absent.yaml: cannot be read: No such file" in done.stderr


def test_list_devices_and_check_print_what_there_is(tmp_path: Path) -> None:
    listed = run("neuron", "--list-devices")
    assert listed.returncode == 0
    assert "devices:" in listed.stdout
    checked = run("neuron", "--check", "--config", str(ROOT / "examples" / "neuron.yaml"))
    assert checked.returncode == 0
    assert "ok, 1 models" in checked.stdout


def test_a_gateway_without_its_neuron_starts_says_so_and_picks_it_up_when_it_appears(tmp_path: Path) -> None:
    port = free_port()
    source = f"file:{write_model(tmp_path / 'm.json')}"
    with Gateway(tmp_path / "g", endpoints={"late": f"http://127.0.0.1:{port}"}) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        health = httpx.get(f"{gateway.url}/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert httpx.post(url, json=chat("m", "x"), timeout=30).status_code in (404, 503)
        with Neuron(
            tmp_path / "n", port=port, models=[{"id": "m", "source": source}], engine="tests.support.fake_engine"
        ):
            gateway._wait(lambda: httpx.get(f"{gateway.url}/health").json()["status"] == "ok", "the neuron's link")
            answer = httpx.post(url, json=chat("m", "x", max_tokens=2), timeout=30)
            assert answer.status_code == 200
        assert "does not answer; waiting for it" in gateway.log


def test_files_that_cannot_be_served_fail_their_requests_alone(tmp_path: Path) -> None:
    data = DEMO_MODEL.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.gguf").write_text("not a model at all")
    good = {"id": "good", "source": f"file:{DEMO_MODEL}", "context": 512, "kv_tokens": 512}
    models: list[dict[str, Any]] = [
        good,
        {"id": "cut", "source": "cut.gguf"},
        {"id": "text", "source": f"file:{tmp_path}/text.gguf"},
        {"id": "gone", "source": "gone.gguf"},
        {"id": "wide", "source": f"file:{DEMO_MODEL}", "context": 100000},
    ]
    expected = {"cut": "truncated", "text": "no GGUF file", "gone": "no such file below", "wide": "trained for (8192)"}
    with (
        Neuron(tmp_path / "n", models=models, model_dirs=[str(tmp_path)]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        url = f"{gateway.url}/v1/chat/completions"
        for model, words in expected.items():
            for is_stream in (False, True):
                answer = httpx.post(url, json=chat(model, "x", stream=is_stream), timeout=30)
                assert answer.status_code == 503, model
                assert words in answer.json()["error"]["message"], model
        status = neuron.wait_for(lambda s: not s["jobs"])
        reasons = {m["id"]: m["reason"] or "" for m in status["state"]["models"]}
        assert all(words in reasons[model] for model, words in expected.items())
        assert httpx.post(url, json=chat("good", "x", max_tokens=2), timeout=60).status_code == 200
        failed = neuron.ctl("load", "cut")
        assert failed.returncode == 1
        assert "truncated" in failed.stderr


def test_the_catalogue_of_the_gateway_reaches_a_neuron_that_knows_no_model(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json')}"
    catalogue = {"models": [{"id": "m", "source": source, "context": 100}], "aliases": {"short": "m"}}
    with (
        Neuron(tmp_path / "n", engine="tests.support.fake_engine") as neuron,
        Gateway(tmp_path / "g", neurons=[neuron], models=catalogue) as gateway,
    ):
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=chat("short", "x", max_tokens=2), timeout=30)
        assert answer.status_code == 200
        assert answer.json()["model"] == "m"
        assert [m["id"] for m in neuron.status()["state"]["models"]] == ["m"]


def test_a_sigterm_lets_a_running_stream_end(tmp_path: Path) -> None:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.02)}"
    with (
        Neuron(tmp_path / "n", models=[{"id": "m", "source": source}], engine="tests.support.fake_engine") as neuron,
        Gateway(tmp_path / "g", neurons=[neuron], recovery_s=0.5) as gateway,
    ):
        short = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "short", max_tokens=40))
        long = Stream(f"{gateway.url}/v1/chat/completions", chat("m", "long", max_tokens=100000))
        assert short.started.wait(10)
        assert long.started.wait(10)
        assert neuron.stop() == 0
        finished, cut = short.finish(), long.finish()
        assert finished.done
        assert finished.finish_reason == "length"
        assert cut.error is not None
        assert cut.error["code"] == "shutting_down"
        assert not cut.done
