"""Keys of a real gateway of several processes: made, used, and revoked while it runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from cortex.access.key_file import NAME
from tests.support.fake_neuron import MODEL, FakeNeuron, started, token
from tests.support.harness import ADMIN_KEY, ROOT, Gateway, free_port

CHAT = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
REVOKED_WITHIN_S = 2.0


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture
def gateway(neuron: FakeNeuron, tmp_path: Path) -> Iterator[Gateway]:
    folder = tmp_path / "gateway"
    listen = f"127.0.0.1:{free_port()}"
    access, endpoints = {"metrics_key": True}, {"beast": neuron.endpoint}
    with Gateway(folder, endpoints=endpoints, workers=2, access=access, metrics_listen=listen) as running:
        yield running


def cortex(gateway: Gateway, *arguments: str) -> str:
    """Run `cortex keys` on the gateway's file."""
    command = [sys.executable, "-m", "cortex", "keys", *arguments, "--config", str(gateway.folder / "cortex.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(gateway: Gateway, key: str) -> int:
    return httpx.get(f"{gateway.url}/v1/models", headers={"x-api-key": key}, timeout=5, verify=False).status_code


def wait_for_all(gateway: Gateway, key: str, wanted: int) -> float:
    """Return after how long no process answered otherwise any more; connections are spread over them."""
    began = asked = time.monotonic()
    last = 0.0
    in_a_row = 0
    while in_a_row < 12:
        asked = time.monotonic()
        is_as_wanted = status(gateway, key) == wanted
        in_a_row = in_a_row + 1 if is_as_wanted else 0
        last = last if is_as_wanted else asked - began
        assert asked - began < 20, gateway.log
    return last


@pytest.mark.alone
def test_a_key_works_at_once_and_a_revoked_one_stops_with_what_it_runs(gateway: Gateway, neuron: FakeNeuron) -> None:
    key = cortex(gateway, "create", "--comment", "ada")
    assert wait_for_all(gateway, key, 200) < REVOKED_WITHIN_S
    wait_for_all(gateway, "none", 401)
    rows = cortex(gateway, "list")
    assert "ada" in rows
    assert key not in rows

    def begin(gateway_id: str, job: object) -> None:
        neuron._send(gateway_id, started(job))  # type: ignore[arg-type]
        neuron._send(gateway_id, token(job, 0, "word"))  # type: ignore[arg-type]

    neuron.on_job = begin
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=10) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data"))
        assert "assistant" in next(lines)
        cortex(gateway, "revoke", key)
        began = time.monotonic()
        rest = list(lines)
        assert time.monotonic() - began < REVOKED_WITHIN_S
    assert "invalid_api_key" in rest[-1]
    assert "[DONE]" not in rest[-1]
    assert wait_for_all(gateway, key, 401) < REVOKED_WITHIN_S
    assert key.split("-")[-1] not in gateway.log + (gateway.folder / NAME).read_text()


def test_a_key_is_shown_nowhere_but_where_it_was_made(gateway: Gateway, neuron: FakeNeuron) -> None:
    key, other = cortex(gateway, "create", "--comment", "ada"), cortex(gateway, "create")
    wait_for_all(gateway, other, 200)
    rotated = cortex(gateway, "rotate", other.split("-")[2], "--keep", "1d")
    wait_for_all(gateway, rotated, 200)
    cortex(gateway, "revoke", other.split("-")[2])
    wait_for_all(gateway, rotated, 401)
    neuron.on_job = neuron.run
    bodies: list[Any] = [CHAT, {**CHAT, "stream": False}, {**CHAT, "model": "nope"}, {**CHAT, "messages": 7}, {}]
    seen = ""
    for sent in (key, other, rotated):
        for headers in ({"x-api-key": sent}, {"Authorization": f"Bearer {sent}"}):
            for path in ("/v1/chat/completions", "/v1/messages", "/nowhere", "/fleet/status"):
                for body in bodies:
                    answer = httpx.post(f"{gateway.url}{path}", json=body, headers=headers, timeout=10, verify=False)
                    seen += f"{answer.headers} {answer.text}"
    assert "Hello wide world" in seen
    config = yaml.safe_load((gateway.folder / "cortex.yaml").read_text())
    page = httpx.get(f"http://{config['gateway']['metrics_listen']}/metrics", headers={"x-api-key": ADMIN_KEY}).text
    assert f'helexa_key_requests_total{{key="{key.split("-")[2]}"}}' in page
    daemon = psutil.Process(gateway.pid)
    titles = [f"{p.cmdline()} {p.name()}" for p in (daemon, *daemon.children(recursive=True))]
    assert len(titles) == 3
    kept = b"".join(f.read_bytes() for f in gateway.folder.rglob("*") if f.is_file())
    assert key.split("-")[2].encode() in kept
    told = repr(neuron.received)
    assert f"key:{key.split('-')[2]}" in told
    for place in (seen, page, *titles, gateway.log, kept.decode(errors="replace"), told):
        for text in (key, other, rotated):
            assert text.split("-")[3] not in place


def test_metrics_can_be_closed_to_all_but_a_key_for_them(gateway: Gateway) -> None:
    key = cortex(gateway, "create", "--role", "metrics")
    wait_for_all(gateway, key, 403)
    config = yaml.safe_load((gateway.folder / "cortex.yaml").read_text())
    url = f"http://{config['gateway']['metrics_listen']}/metrics"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).status_code == 200
    answers = {httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code for _ in range(8)}
    assert answers == {200}
