"""The real `cortex serve` with a fake neuron behind it, seen by real clients."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from common.errors import Code
from common.messages import Abort, Failed, FailedItem, Job, JobKey
from tests.support.fake_neuron import MODEL, FakeNeuron, ended, started, token
from tests.support.harness import Gateway, free_port

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture(scope="module")
def shared(neuron: FakeNeuron, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, endpoints={"beast": neuron.endpoint}, max_body_mb=1) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway, neuron: FakeNeuron) -> Gateway:
    """One gateway for all tests that leave it as it was."""
    neuron.on_job = neuron.run
    neuron.received.clear()
    return shared


@contextlib.contextmanager
def streaming(gateway: Gateway, **fields: Any) -> Iterator[Iterator[str]]:
    """Open a stream and hand out its lines."""
    with (
        httpx.Client(timeout=PATIENCE_S) as client,
        client.stream("POST", f"{gateway.url}/v1/chat/completions", json={**CHAT, "stream": True, **fields}) as reply,
    ):
        assert reply.status_code == 200
        yield (line for line in reply.iter_lines() if line)


def failing(neuron: FakeNeuron, code: Code, **fields: Any) -> None:
    """Have every job fail."""

    def play(gateway: str, job: Job) -> None:
        item = FailedItem(job=job.id, attempt=job.attempt, code=code, message=f"it is {code}", **fields)
        neuron._send(gateway, Failed(items=[item]))

    neuron.on_job = play


def wait_for_log(gateway: Gateway, text: str) -> None:
    """Wait until the gateway has said something."""
    ends_at = time.monotonic() + PATIENCE_S
    while text not in gateway.log:
        assert time.monotonic() < ends_at, f"never said {text!r}:\n{gateway.log}"
        time.sleep(0.01)


def worker_pids(gateway: Gateway, at_least: int = 0) -> set[int]:
    """Return the pids of the gateway's processes, when there are so many; one answers before the others begin."""
    ends_at = time.monotonic() + PATIENCE_S
    while len(pids := {p.pid for p in psutil.Process(gateway.pid).children()}) < at_least:
        assert time.monotonic() < ends_at, gateway.log
        time.sleep(0.01)
    return pids


def test_the_openai_sdk_reads_a_whole_reply(gateway: Gateway) -> None:
    with gateway.openai() as client:
        reply = client.chat.completions.create(**CHAT, n=2)
    assert [c.message.content for c in reply.choices] == ["Hello wide world"] * 2
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 6)


def test_the_openai_sdk_reads_a_stream(gateway: Gateway) -> None:
    with gateway.openai() as client:
        chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello wide world"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8


def test_the_openai_sdk_reads_completions_and_models(gateway: Gateway) -> None:
    with gateway.openai() as client:
        assert client.completions.create(model=MODEL, prompt="x", echo=True).choices[0].text == "xHello wide world"
        chunks = list(client.completions.create(model=MODEL, prompt=["x", "y"], stream=True))
        assert [m.id for m in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["Hello wide world"] * 2


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "unsupported_parameter"),
        ({"model": "nope"}, openai.NotFoundError, "model_not_found"),
    ],
)
def test_errors_are_the_sdks_own_classes(
    gateway: Gateway, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with gateway.openai() as client, pytest.raises(kind) as caught:
        client.chat.completions.create(**{**CHAT, **fields})
    assert caught.value.code == code
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.CONTEXT_LENGTH_EXCEEDED, openai.BadRequestError),
        (Code.MODEL_LOADING_FAILED, openai.InternalServerError),
        (Code.DEADLINE_EXCEEDED, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_of_the_neuron_are_real_statuses(
    gateway: Gateway, neuron: FakeNeuron, code: Code, kind: type[openai.APIStatusError], stream: bool
) -> None:
    failing(neuron, code)
    with gateway.openai() as client, pytest.raises(kind) as caught:
        client.chat.completions.create(**CHAT, stream=stream)
    assert caught.value.code == code


def test_a_busy_fleet_says_when_to_come_again(gateway: Gateway, neuron: FakeNeuron) -> None:
    failing(neuron, Code.BUSY, retriable=True, retry_after_ms=2500)
    with gateway.openai() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "3")


def test_the_sdk_raises_for_a_failure_in_mid_stream(gateway: Gateway, neuron: FakeNeuron) -> None:
    def play(peer: str, job: Job) -> None:
        neuron._send(peer, started(job))
        neuron._send(peer, token(job, 0, "Hel"))
        failing_item = FailedItem(job=job.id, attempt=0, code=Code.WORKER_DIED, message="gone", retriable=False)
        neuron._send(peer, Failed(items=[failing_item]))

    neuron.on_job = play
    with gateway.openai() as client, pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(**CHAT, stream=True))
    assert caught.value.code == "worker_died"


def test_tokens_reach_the_client_as_they_come(gateway: Gateway, neuron: FakeNeuron) -> None:
    neuron.on_job = neuron.hold
    with streaming(gateway) as lines:
        assert '"role"' in next(lines)
        job = neuron.jobs()[-1]
        for at, word in enumerate(("one", "two")):
            neuron.send(token(job, at, word))
            assert word in next(lines)
        neuron.send(ended(job, 2))
        assert [line.split(":")[0] for line in lines] == ["data", "data"]


@pytest.mark.parametrize("stage", ["queued", "begun", "streaming"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_aborts_its_job_within_milliseconds(
    gateway: Gateway, neuron: FakeNeuron, stage: str, stream: bool
) -> None:
    neuron.on_job = neuron.ignore if stage == "queued" else neuron.hold
    body = httpx.Request("POST", gateway.url, json={**CHAT, "stream": stream}).content
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        (job,) = neuron.jobs()
        if stage == "streaming":
            neuron.send(token(job, 0, "word"))
        if stream and stage != "queued":
            assert client.recv(1000)
    gone_at = time.monotonic()
    assert neuron.wait_for(Abort).jobs == [JobKey(job.id, 0)]
    assert time.monotonic() - gone_at < 0.5
    wait_for_log(gateway, "outcome='client gone'")


@pytest.mark.parametrize(
    "request_bytes",
    [b"NONSENSE\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"],
)
def test_what_is_no_http_is_refused_in_the_envelope(gateway: Gateway, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(request_bytes)
        reply = b""
        while chunk := client.recv(4096):
            reply += chunk
    assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'{"error":{"message":' in reply


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_before_all_of_it_is_sent(gateway: Gateway, chunked: bool) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {2**30}"
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode())
        block = b" " * 65536
        for _ in range(17 if chunked else 1):
            client.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)
        reply = client.recv(65536)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in reply


def test_a_client_that_asks_first_is_told_to_go_on(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_one_connection_serves_many_requests(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url) as client:
        for _ in range(3):
            with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
                assert "[DONE]" in reply.read().decode()
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
            assert client.get("/health").json()["status"] == "ok"


def test_a_hangup_changes_the_catalogue_of_every_process_and_cuts_no_stream(tmp_path: Path) -> None:
    models = {"models": [{"id": "old/model", "source": "file:/x.gguf"}]}
    with (
        FakeNeuron() as neuron,
        Gateway(tmp_path, endpoints={"beast": neuron.endpoint}, workers=2, models=models) as gateway,
    ):
        neuron.on_job = neuron.hold
        before = worker_pids(gateway, at_least=2)
        with streaming(gateway) as lines:
            next(lines)
            (tmp_path / "models.yaml").write_text("models: [{id: new/model, source: 'file:/y.gguf'}]")
            gateway.kill(signal.SIGHUP)
            for pid in before:
                psutil.Process(pid).send_signal(signal.SIGHUP)  # as `systemctl reload` may do with a whole group
            assert_listed(gateway, "new/model", "old/model")
            neuron.send(token(neuron.jobs()[-1], 0, "still here"), neuron.jobs_from[-1])
            assert any("still here" in line for line in lines)  # a comment may come before
        assert worker_pids(gateway) == before


def test_a_hangup_does_not_end_a_process_that_has_just_begun(tmp_path: Path) -> None:
    models = {"models": [{"id": "old/model", "source": "file:/x.gguf"}]}
    with FakeNeuron() as neuron, Gateway(tmp_path, endpoints={"beast": neuron.endpoint}, models=models) as gateway:
        (old,) = worker_pids(gateway)
        psutil.Process(old).kill()
        ends_at, new = time.monotonic() + PATIENCE_S, set[int]()
        while not new or gateway.log.count(" answers") < 2:
            new = worker_pids(gateway) - {old}
            for pid in new:
                psutil.Process(pid).send_signal(signal.SIGHUP)
            assert time.monotonic() < ends_at, gateway.log
        assert worker_pids(gateway) == new


def assert_listed(gateway: Gateway, there: str, gone: str) -> None:
    """Wait until every process lists one model and not the other; connections are spread over the processes."""
    ends_at, agreed = time.monotonic() + PATIENCE_S, 0
    while agreed < 20:
        ids = {m["id"] for m in httpx.get(f"{gateway.url}/v1/models").json()["data"]}
        agreed = agreed + 1 if there in ids and gone not in ids else 0
        assert time.monotonic() < ends_at, gateway.log


def test_a_bad_file_is_refused_whole_and_what_needs_a_restart_is_named(gateway: Gateway) -> None:
    config, models = gateway.folder / "cortex.yaml", gateway.folder / "models.yaml"
    good = config.read_text()
    for broken, complaint in (
        ("models: [{id: a, source: x}, {id: a, source: y}]", "is given twice"),
        ("models: [{id: b, source: x, vram: 7}]", "vram: unknown key"),
        ("models: [{id: c, source: x, min_devices: many}]", "min_devices: expected a whole number"),
    ):
        models.write_text(broken)
        gateway.kill(signal.SIGHUP)
        wait_for_log(gateway, complaint)
    models.unlink()
    config.write_text(good.replace("neurons:", "nurons:"))
    gateway.kill(signal.SIGHUP)
    wait_for_log(gateway, "nurons: unknown key")
    assert {m["id"] for m in httpx.get(f"{gateway.url}/v1/models").json()["data"]} == {"tiny/model"}
    config.write_text(good.replace("max_body_mb: 1", "max_body_mb: 2"))
    gateway.kill(signal.SIGHUP)
    wait_for_log(gateway, "only a restart applies these changes: gateway.max_body_mb")
    config.write_text(good)


def test_a_gateway_process_that_dies_is_replaced(tmp_path: Path) -> None:
    with FakeNeuron() as neuron, Gateway(tmp_path, endpoints={"beast": neuron.endpoint}) as gateway:
        (before,) = worker_pids(gateway)
        psutil.Process(before).kill()
        ends_at = time.monotonic() + PATIENCE_S
        while not (worker_pids(gateway) - {before}):
            assert time.monotonic() < ends_at, gateway.log
            time.sleep(0.02)
        with gateway.openai() as client:
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello wide world"
        assert len(neuron.gateways) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_running_requests(tmp_path: Path, number: signal.Signals) -> None:
    with FakeNeuron() as neuron, Gateway(tmp_path, endpoints={"beast": neuron.endpoint}, drain_s=20) as gateway:
        neuron.on_job = neuron.hold
        with streaming(gateway) as lines:
            next(lines)
            for pid in [gateway.pid, *(worker_pids(gateway) if number == signal.SIGINT else ())]:
                psutil.Process(pid).send_signal(number)  # Ctrl-C reaches the whole group
            wait_for_log(gateway, "waiting for running requests")
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{gateway.url}/livez")
            job = neuron.jobs()[0]
            neuron.send(token(job, 0, "last"))
            neuron.send(ended(job, 1))
            assert list(lines)[-1] == "data: [DONE]"
        assert gateway.process.wait(PATIENCE_S) == 0


def test_what_still_runs_after_the_drain_gets_an_error_event(tmp_path: Path) -> None:
    with FakeNeuron() as neuron, Gateway(tmp_path, endpoints={"beast": neuron.endpoint}, drain_s=0.2) as gateway:
        neuron.on_job = neuron.hold
        with streaming(gateway) as lines:
            next(lines)
            gateway.kill(signal.SIGTERM)
            rest = list(lines)
        assert '"code":"shutting_down"' in rest[-1]
        assert neuron.wait_for(Abort).jobs == [JobKey(neuron.jobs()[0].id, 0)]
        assert gateway.process.wait(PATIENCE_S) == 0


def test_a_port_that_is_taken_is_told_in_one_line_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        began = time.monotonic()
        gateway = Gateway(tmp_path, port=port)
        assert gateway.process.wait(PATIENCE_S) == 1
        assert time.monotonic() - began < 4
        (line,) = gateway.log.splitlines()
        assert f"127.0.0.1:{port}: address already in use; stop the other program or change gateway.listen" in line
        assert str(tmp_path / "cortex.yaml") in line


def test_the_gateway_starts_without_a_neuron_and_picks_it_up_later(tmp_path: Path) -> None:
    port = free_port()
    with Gateway(tmp_path, endpoints={"beast": f"127.0.0.1:{port}"}) as gateway:
        wait_for_log(gateway, f"neuron beast at 127.0.0.1:{port} does not answer; waiting for it")
        assert httpx.get(f"{gateway.url}/health").json()["status"] == "degraded"
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT).status_code == 503
        with FakeNeuron(port=port):
            wait_for_log(gateway, f"neuron beast at 127.0.0.1:{port} answers")
            with gateway.openai() as client:
                assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello wide world"
