"""Clients that are slow, silent, too many, or speak something else, against a real gateway with short limits."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from common.messages import Abort
from tests.support.fake_neuron import MODEL, FakeNeuron, started, token
from tests.support.harness import Gateway

LIMITS: dict[str, Any] = {
    "header_s": 0.6,
    "idle_s": 1.0,
    "body_s": 0.6,
    "write_stall_s": 0.6,
    "connections": 60,
    "connections_per_address": 8,
    "request_line_bytes": 2000,
    "header_fields": 40,
    "header_field_bytes": 3000,
}
OTHER = "127.0.0.2"
"""A client that is no proxy of ours."""
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture(scope="module")
def shared(neuron: FakeNeuron, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, endpoints={"beast": neuron.endpoint}, limits=LIMITS) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """Whatever a client did, the next request is served."""
    yield shared
    assert httpx.get(f"{shared.url}/livez", timeout=5).status_code == 200
    assert "Traceback" not in shared.log


@contextlib.contextmanager
def connect(gateway: Gateway, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    address = ("127.0.0.1", gateway.port)
    with socket.create_connection(address, timeout=PATIENCE_S, source_address=(source, 0)) as client:
        yield client


def read_all(client: socket.socket) -> bytes:
    """Read until the gateway closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            data += piece
    return data


def drip(client: socket.socket, data: bytes, every_s: float) -> bytes:
    """Send a byte at a time until the gateway answers; return what it says."""
    client.settimeout(every_s)
    for at in range(len(data)):
        try:
            client.sendall(data[at : at + 1])
            answer = client.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return b""
        client.settimeout(PATIENCE_S)
        return answer + read_all(client)
    raise AssertionError("the gateway waits for ever")


def error_in(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    error: dict[str, Any] = json.loads(body)["error"]
    return {**error, "status": int(head.split()[1])}


def test_a_header_that_comes_byte_by_byte_ends_in_time(gateway: Gateway) -> None:
    with connect(gateway) as client:
        error = error_in(drip(client, HEAD * 10, 0.05))
    assert error["status"] == 408
    assert "header" in error["message"]


def test_so_does_one_on_a_connection_that_was_used_before(gateway: Gateway) -> None:
    with connect(gateway) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in client.recv(65536)
        assert error_in(drip(client, HEAD * 10, 0.05))["status"] == 408


def test_a_body_that_comes_byte_by_byte_ends_in_time(gateway: Gateway) -> None:
    with connect(gateway) as client:
        client.sendall(HEAD + b"content-length: 5000\r\n\r\n")
        error = error_in(drip(client, b" " * 5000, 0.05))
    assert error["status"] == 408
    assert "body" in error["message"]


@pytest.mark.parametrize(("chunks", "words"), [(4000, "model: is required"), (5000, "chunks of less than 16 bytes")])
def test_a_body_comes_in_no_host_of_tiny_chunks(gateway: Gateway, chunks: int, words: str) -> None:
    with connect(gateway) as client:
        body = b"1\r\n \r\n" * chunks + b"2\r\n{}\r\n0\r\n\r\n"
        client.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + body)
        error = error_in(read_all(client))
    assert error["status"] == 400
    assert words in error["message"]


def test_a_silent_connection_is_closed(gateway: Gateway) -> None:
    with connect(gateway) as fresh, connect(gateway) as used:
        used.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in used.recv(65536)
        assert b"408" in read_all(fresh)
        assert read_all(used) == b""


def test_a_client_that_takes_nothing_is_gone(gateway: Gateway, neuron: FakeNeuron) -> None:
    neuron.received.clear()
    neuron.on_job = neuron.ignore
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", gateway.port))
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        job = neuron.jobs()[-1]
        neuron.send(started(job))
        for at in range(200):
            neuron.send(token(job, at, "word " * 10_000))
        neuron.wait_for(Abort, lambda m: job.id in {k.job for k in m.jobs})


def test_an_address_has_only_so_many_connections_and_a_proxy_any_number(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS["connections_per_address"]):
            stack.enter_context(connect(gateway, OTHER))
        one_more = stack.enter_context(connect(gateway, OTHER))
        error = error_in(read_all(one_more))
        assert (error["status"], error["code"]) == (429, "rate_limit_exceeded")
        assert OTHER in error["message"]
        for _ in range(2 * LIMITS["connections_per_address"]):
            proxied = stack.enter_context(connect(gateway))
        proxied.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in proxied.recv(65536)
    ends_at = time.monotonic() + PATIENCE_S
    while True:  # those that were closed count no more
        with connect(gateway, OTHER) as again:
            again.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            if b" 200 " in read_all(again):
                break
        assert time.monotonic() < ends_at


def test_a_process_has_only_so_many_connections(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS["connections"]):
            held = stack.enter_context(connect(gateway))
        held.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in held.recv(65536)
        error = error_in(read_all(stack.enter_context(connect(gateway))))
        assert (error["status"], error["code"]) == (429, "rate_limit_exceeded")
        assert "this gateway process" in error["message"]
    ends_at = time.monotonic() + PATIENCE_S
    while httpx.get(f"{gateway.url}/livez", timeout=5).status_code != 200:
        assert time.monotonic() < ends_at


def test_a_client_that_closes_its_half_is_gone(gateway: Gateway, neuron: FakeNeuron) -> None:
    neuron.received.clear()
    neuron.on_job = neuron.ignore
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
    with connect(gateway) as client:
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        job = neuron.jobs()[-1]
        client.shutdown(socket.SHUT_WR)
        neuron.wait_for(Abort, lambda m: job.id in {k.job for k in m.jobs})


def test_a_websocket_is_not_opened(gateway: Gateway) -> None:
    upgrade = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n"
    with connect(gateway) as client:
        client.sendall(upgrade + b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(41)) + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nh: " + b"x" * 3000 + b"\r\n\r\n", 431),
        (b"GET /livez?" + b"x" * 1900 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 200),
        (
            b"GET /livez HTTP/1.1\r\nconnection: close\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(38)) + b"\r\n",
            200,
        ),
        (b"GET /livez HTTP/1.1\r\nconnection: close\r\nh: " + b"x" * 2900 + b"\r\n\r\n", 200),
        (b"GET /livez?\xeb HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 400),
        (HEAD + b"content-encoding: gzip\r\ncontent-length: 2\r\nconnection: close\r\n\r\n\x1f\x8b", 400),
    ],
)
def test_headers_have_their_limits(gateway: Gateway, request_bytes: bytes, status: int) -> None:
    with connect(gateway) as client:
        client.sendall(request_bytes)
        answer = read_all(client)
    assert int(answer.split()[1]) == status
    if status >= 400:
        assert error_in(answer)["status"] == status
