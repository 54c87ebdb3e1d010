"""Mutated frames to a neuron's bus and mutated requests to a gateway: real daemons, judged by what they do next."""

import contextlib
import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import zmq

from common.codec import decode_from_neuron, encode
from common.ids import new_incarnation
from common.keys import Credentials, make_pair
from common.messages import PROTOCOL_VERSION, Hello, NodeState
from common.sockets import bus_dealer
from neuron.broker.authorized import authorize
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import frames, request_bodies
from tests.support.fake_neuron import MODEL, FakeNeuron
from tests.support.harness import Gateway, Neuron

FRAMES, REQUESTS = 1_000_000, 100_000
"""Of a long run."""
WARM_UP = 0.4
"""Part of a run after which memory is measured for the first time: books with a bound, as those of routing ids and of
what happened last, are full by then."""
GROWTH, SHORT_GROWTH = 1.05, 1.2
PATIENCE_S = 20
BATCH = 200
"""Frames between two looks whether the neuron keeps up."""


def resident_mb(process: psutil.Process, *, is_short: bool) -> float:
    """Return what a process and, in a long run, its children hold; in a short one those are still beginning."""
    held = 0
    for one in (process, *([] if is_short else process.children(recursive=True))):
        with contextlib.suppress(psutil.NoSuchProcess):
            held += one.memory_info().rss
    return held / 2**20


def feed_bus(neuron: Neuron, seed: int, count: int, *, is_short: bool = False) -> None:
    """Send mutated frames as a peer that has said Hello; raise AssertionError if the neuron minds."""
    mutator = Mutator(frames(), seed)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        credentials = _authorise(neuron)
        peer = _greet(context, neuron, credentials)
        neuron.wait_for(lambda s: all(d["state"] == "ready" for d in s["state"]["devices"]))
        process, before = psutil.Process(neuron.pid), 0.0
        for number in range(count):
            if number == int(count * WARM_UP):
                before = resident_mb(process, is_short=is_short)
            with contextlib.suppress(zmq.Again):
                peer.send(mutator.next(), zmq.DONTWAIT)
            if number % BATCH == BATCH - 1:
                peer.close(linger=1000)  # a connection that was cut for an oversize frame is no finding
                peer = _greet(context, neuron, credentials)
        peer.close(linger=0)
        after = resident_mb(process, is_short=is_short)
    finally:
        context.destroy(linger=0)
    assert neuron.process.poll() is None, neuron.log
    assert "Traceback" not in neuron.log, neuron.log[-5000:]
    assert after <= before * (SHORT_GROWTH if is_short else GROWTH), f"grew from {before:.0f} to {after:.0f} MiB"
    neuron.status()


def _authorise(neuron: Neuron) -> Credentials | None:
    """Return what a gateway needs that this neuron takes; None: it speaks plain text."""
    if neuron.credentials is None:
        return None
    pair = make_pair(neuron.folder / "fuzz.key")
    authorize(neuron.folder / "keys" / "authorized_keys", "gateway", pair.public.hex(), "fuzz")
    return Credentials(pair, neuron.credentials.neuron)


def _greet(
    context: "zmq.Context[zmq.Socket[bytes]]", neuron: Neuron, credentials: Credentials | None
) -> "zmq.Socket[bytes]":
    """Return a connection on which the neuron has answered a Hello: it has read all that came before on others."""
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at:
        incarnation = new_incarnation()
        peer = bus_dealer(context, neuron.endpoint, incarnation, credentials)
        hello = encode(Hello(version=PROTOCOL_VERSION, incarnation=incarnation, role="gateway", name="fuzz"))
        if peer.poll(2000, zmq.POLLOUT):  # else its key was refused: it has only just been authorised
            peer.send(hello)
        while peer.poll(2000, zmq.POLLIN):
            if isinstance(decode_from_neuron(peer.recv()), NodeState):
                return peer
        peer.close(linger=0)
    raise AssertionError("the neuron does not answer a Hello")


def requests() -> list[bytes]:
    """Return requests as clients send them."""
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/tokenize")
    found = []
    for path, body in zip(paths, request_bodies(), strict=True):
        body = body.replace(b'"m"', f'"{MODEL}"'.encode())
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-api-key: none\r\n"
        found.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        half = len(body) // 2
        chunks = b"%x\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
        found.append(f"{head}transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n".encode() + chunks)
    found.append(b"GET /v1/models/tiny%2Fmodel HTTP/1.1\r\nhost: x\r\nanthropic-version: 1\r\norigin: http://a\r\n\r\n")
    found.append(b"GET /livez HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return found


def feed_http(gateway: Gateway, seed: int, count: int, *, is_short: bool = False) -> None:
    """Send mutated requests; raise AssertionError if the gateway minds."""
    mutator, cuts = Mutator(requests(), seed), random.Random(seed)
    process, before = psutil.Process(gateway.pid), 0.0
    for number in range(count):
        if number == int(count * WARM_UP):
            before = resident_mb(process, is_short=is_short)
        data = mutator.next()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S) as client:
            cut = cuts.randint(0, len(data))
            client.sendall(data[:cut])
            client.sendall(data[cut:])
            if cuts.random() < 0.7:
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        if number % BATCH == 0:
            _ask(gateway)
    _ask(gateway)
    after = resident_mb(process, is_short=is_short)
    assert gateway.process.poll() is None, gateway.log
    assert "Traceback" not in gateway.log, gateway.log[-5000:]
    assert after <= before * (SHORT_GROWTH if is_short else GROWTH), f"grew from {before:.0f} to {after:.0f} MiB"


def _ask(gateway: Gateway) -> None:
    with gateway.openai() as client:
        reply = client.completions.create(model=MODEL, prompt="x", timeout=PATIENCE_S)
    assert reply.choices[0].text == "Hello wide world"


def _bus(security: str) -> Callable[[int, int], bool]:
    def run(seed: int, count: int) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            if security == "curve":
                return _judge("bus with keys", lambda: _run_bus(Path(folder), seed, count, security="curve"))
            return _judge("bus", lambda: _run_bus(Path(folder), seed, count))

    return run


def _run_bus(folder: Path, seed: int, count: int, **settings: str) -> None:
    with Neuron(folder, engine="tests.support.fake_engine", **settings) as neuron:  # type: ignore[arg-type]
        feed_bus(neuron, seed, count or FRAMES)


def _http(seed: int, count: int) -> bool:
    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            FakeNeuron() as neuron,
            Gateway(Path(folder), endpoints={"beast": neuron.endpoint}) as gateway,
        ):
            feed_http(gateway, seed, count or REQUESTS)

    return _judge("http", run)


def _judge(name: str, run: Callable[[], None]) -> bool:
    began = time.monotonic()
    try:
        run()
    except AssertionError as error:
        print(f"{name}: {error}", flush=True)
        return False
    print(f"{name}: without a finding in {time.monotonic() - began:.0f} s", flush=True)
    return True


WIRES: dict[str, Callable[[int, int], bool]] = {"bus": _bus("plaintext"), "bus-keys": _bus("curve"), "http": _http}
