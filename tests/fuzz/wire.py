"""Mutated frames to a neuron's bus and mutated requests to a gateway: real daemons, judged by what they do next."""

import contextlib
import random
import re
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import zmq

from common.codec import decode_from_neuron, encode
from common.ids import new_incarnation, new_job_id
from common.keys import Credentials, make_pair
from common.messages import PROTOCOL_VERSION, Ended, Failed, Hello, Job, NodeState, Submit, Text
from common.sockets import bus_dealer
from neuron.broker.authorized import authorize
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import FRAMES_MODEL, frames, request_bodies
from tests.support.fake_engine import write_model
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
JOB_EVERY = 10
"""Batches between two good jobs."""
CLIENTS = 32
"""With a request at the same time."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def fuzzed_neuron(folder: Path, **settings: Any) -> Neuron:
    """Return a neuron that has the model of the frames: those that are still right run."""
    folder.mkdir(parents=True, exist_ok=True)
    source = f"file:{write_model(folder / 'm.json', length=3)}"
    model = {"id": FRAMES_MODEL, "source": source, "context": 256, "kv_tokens": 4096, "parallel": 8}
    return Neuron(folder, models=[model], engine="tests.support.fake_engine", **settings)


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
            if number % (BATCH * JOB_EVERY) == BATCH * JOB_EVERY - 1:
                _run_job(peer)
        _run_job(peer)
        peer.close(linger=0)
        after = resident_mb(process, is_short=is_short)
    finally:
        context.destroy(linger=0)
    assert neuron.process.poll() is None, neuron.log
    assert "Traceback" not in neuron.log, _first_traceback(neuron.log)
    assert after <= before * (SHORT_GROWTH if is_short else GROWTH), f"grew from {before:.0f} to {after:.0f} MiB"
    neuron.status()


def _first_traceback(text: str) -> str:
    return text[text.index("Traceback") :][:5000]


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


def _run_job(peer: "zmq.Socket[bytes]") -> None:
    """Have a good job served, however often that takes: the mutated frames may have had its model unloaded."""
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at:
        job = Job(id=new_job_id(), attempt=0, model=FRAMES_MODEL, request_id="good", input=Text(text="good"))
        peer.send(encode(Submit(jobs=[job])))
        while peer.poll(5000, zmq.POLLIN):
            said = decode_from_neuron(peer.recv())
            if isinstance(said, Ended) and any(item.job == job.id for item in said.items):
                return
            if isinstance(said, Failed) and any(item.job == job.id for item in said.items):
                break
    raise AssertionError("a good job is not served")


def requests() -> list[bytes]:
    """Return requests as clients send them."""
    found = []
    for path, body in request_bodies():
        body = body.replace(b'"m"', f'"{MODEL}"'.encode())
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-api-key: none\r\n"
        found.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        half = len(body) // 2
        chunks = b"%x\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
        found.append(f"{head}transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n".encode() + chunks)
    found.append(b"GET /v1/models/tiny%2Fmodel HTTP/1.1\r\nhost: x\r\nanthropic-version: 1\r\norigin: http://a\r\n\r\n")
    found.append(b"GET /livez HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return found


class _Clients:
    """Connections that are open at once: whoever left at once would have nothing of its request read."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._open: deque[socket.socket] = deque()
        self.statuses: Counter[int] = Counter()

    def send(self, data: bytes) -> None:
        """Send a request in two pieces, and let the oldest client go."""
        client = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
        self._open.append(client)
        cut = self._random.randint(0, len(data))
        with contextlib.suppress(ConnectionError):  # what was refused may have been closed already
            client.sendall(data[:cut])
            client.sendall(data[cut:])
        if len(self._open) > CLIENTS:
            self._end(self._open.popleft())

    def end(self) -> None:
        """Let all go."""
        while self._open:
            self._end(self._open.popleft())

    def _end(self, client: socket.socket) -> None:
        """Take what has come; half of the clients then wait for the gateway to close. One that is left open hangs."""
        answer = b""
        with client, contextlib.suppress(ConnectionError):
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                answer = client.recv(65536)
            client.settimeout(PATIENCE_S)
            if self._random.random() < 0.5:
                with contextlib.suppress(OSError):  # ENOTCONN: the gateway has closed it
                    client.shutdown(socket.SHUT_WR)
                while piece := client.recv(65536):
                    answer += piece
        match = _STATUS.match(answer.removeprefix(CONTINUE))
        self.statuses[int(match[1]) if match else 0] += 1


def feed_http(gateway: Gateway, seed: int, count: int, *, is_short: bool = False) -> Counter[int]:
    """Send mutated requests; raise AssertionError if the gateway minds. Return how many had each status; 0: none."""
    mutator, clients = Mutator(requests(), seed), _Clients(gateway.port, seed)
    process, before = psutil.Process(gateway.pid), 0.0
    try:
        for number in range(count):
            if number == int(count * WARM_UP):
                before = resident_mb(process, is_short=is_short)
            clients.send(mutator.next())
            if number % BATCH == 0:
                _ask(gateway)
    finally:
        clients.end()
    _ask(gateway)
    after = resident_mb(process, is_short=is_short)
    assert gateway.process.poll() is None, gateway.log
    assert "Traceback" not in gateway.log, _first_traceback(gateway.log)
    assert not [s for s in clients.statuses if s >= 500], clients.statuses
    assert clients.statuses[200] > count / 50, f"few requests were right enough to be answered: {clients.statuses}"
    assert after <= before * (SHORT_GROWTH if is_short else GROWTH), f"grew from {before:.0f} to {after:.0f} MiB"
    return clients.statuses


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
    with fuzzed_neuron(folder, **settings) as neuron:
        feed_bus(neuron, seed, count or FRAMES)


def _http(seed: int, count: int) -> bool:
    def run() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            FakeNeuron() as neuron,
            Gateway(Path(folder), endpoints={"beast": neuron.endpoint}) as gateway,
        ):
            print(f"http: answers by status: {dict(feed_http(gateway, seed, count or REQUESTS))}", flush=True)

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
