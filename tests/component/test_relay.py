"""Streamed replies of the real `cortex serve`, as their bytes are: written directly, merged for a slow client."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cortex.api.exchange import Exchange
from cortex.api.relay import Relay
from cortex.dialects.contract import Stream
from tests.support.fake_fleet import FakeCall, begun
from tests.support.fake_neuron import MODEL, FakeNeuron, ended, token
from tests.support.harness import Gateway

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
PING_S = 0.3


@pytest.fixture(scope="module")
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as fake:
        yield fake


@pytest.fixture(scope="module")
def shared(neuron: FakeNeuron, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), endpoints={"beast": neuron.endpoint}, ping_s=PING_S) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway, neuron: FakeNeuron) -> Gateway:
    """One gateway for all tests that leave it as it was."""
    neuron.on_job = neuron.run
    neuron.received.clear()
    return shared


def connect(gateway: Gateway, version: str = "1.1", **options: Any) -> socket.socket:
    """Ask for a stream, and read nothing."""
    client = socket.socket()
    for name, value in options.items():
        client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    client.settimeout(10)
    client.connect(("127.0.0.1", gateway.port))
    ask(client, version)
    return client


def ask(client: socket.socket, version: str = "1.1") -> None:
    """Send the request."""
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Return what comes, up to `end` or the connection's."""
    data = bytearray()
    while not data.endswith(end):
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return bytes(data)


def unchunk(body: bytes) -> bytes:
    """Return the content of a chunked body; every chunk must be whole."""
    content = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert rest == b"\r\n"
            return content
        assert rest[length : length + 2] == b"\r\n"
        content, body = content + rest[:length], rest[length + 2 :]


def texts(content: bytes) -> list[str]:
    """Return the text of each event that has some."""
    events = [line[6:] for line in content.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [json.loads(e)["choices"][0]["delta"].get("content") for e in events]
    return [d for d in deltas if d]


def test_one_connection_carries_one_stream_after_another(gateway: Gateway) -> None:
    with connect(gateway) as client:
        for number in range(3):
            if number:
                ask(client)
            head, _, body = read_until(client, b"0\r\n\r\n").partition(b"\r\n\r\n")
            assert b"transfer-encoding: chunked" in head.lower()
            content = unchunk(body)
            assert "".join(texts(content)) == "Hello wide world"
            assert content.endswith(b"data: [DONE]\n\n")


def test_a_client_of_http_1_0_gets_no_chunks(gateway: Gateway) -> None:
    with connect(gateway, "1.0") as client:
        head, _, content = read_until(client, b"never").partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert content.startswith(b"data: {")
    assert content.endswith(b"data: [DONE]\n\n")


def test_silence_in_mid_stream_is_filled_with_comments(gateway: Gateway, neuron: FakeNeuron) -> None:
    neuron.on_job = neuron.hold
    with connect(gateway) as client:
        (job,) = neuron.jobs()
        neuron.send(token(job, 0, "word"))
        began = time.monotonic()
        data = read_until(client, b": ping\n\n\r\n")
        data += read_until(client, b": ping\n\n\r\n")
        assert time.monotonic() - began >= 2 * PING_S - 0.1
        neuron.send(token(job, 1, " more"))
        neuron.send(ended(job, 2))
        data += read_until(client, b"0\r\n\r\n")
    content = unchunk(data.partition(b"\r\n\r\n")[2])
    assert texts(content) == ["word", " more"]
    assert content.count(b": ping") >= 2


def test_a_client_that_is_behind_gets_larger_pieces_and_nobody_waits_for_it(
    gateway: Gateway, neuron: FakeNeuron
) -> None:
    """It reads nothing while 800 events come."""
    steps, width = 800, 2500  # less than the bus takes at once; 14 MB, more than the kernel keeps for a connection
    neuron.on_job = neuron.hold
    with connect(gateway, SO_RCVBUF=4096) as slow:
        (job,) = neuron.jobs()
        for at in range(0, steps * width, width):
            neuron.send(token(job, at, "".join(f"{at + i} " for i in range(width)), count=width))
        neuron.send(ended(job, steps * width))
        neuron.on_job = neuron.run
        with connect(gateway) as quick:
            assert "".join(texts(read_until(quick, b"0\r\n\r\n"))) == "Hello wide world"
        content = unchunk(read_until(slow, b"0\r\n\r\n").partition(b"\r\n\r\n")[2])
    pieces = texts(content)
    assert "".join(pieces).split() == [str(i) for i in range(steps * width)]
    assert len(pieces) < steps / 2
    assert content.endswith(b"data: [DONE]\n\n")


class FullOutlet:
    """A connection whose client never reads."""

    def __init__(self) -> None:
        self.on_room: Any = None
        self.looks = 0

    @property
    def is_full(self) -> bool:
        """Be full, and count who asks."""
        self.looks += 1
        return True

    def write(self, data: bytes) -> None:
        """Never be written to."""
        raise AssertionError(data)


def test_a_client_that_never_reads_costs_a_look_now_and_then() -> None:
    async def run() -> int:
        stream = SimpleNamespace(is_complete=False, feed=lambda events: b"head")
        relay = Relay(cast(Exchange, None), FakeCall([[]]), cast(Stream, stream), ping_s=0.05)
        outlet = FullOutlet()

        async def read() -> None:
            async for _ in relay.pieces([(0, begun())], outlet):
                pass

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read(), 0.5)
        assert outlet.on_room is None
        return outlet.looks

    assert 2 <= asyncio.run(run()) <= 12
