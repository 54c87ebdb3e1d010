"""Whatever arrives at the bus, the neuron goes on."""

import itertools
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from common.codec import decode_from_neuron, encode
from common.ids import new_incarnation, new_job_id
from common.messages import (
    PROTOCOL_VERSION,
    Abort,
    Beat,
    Ended,
    Failed,
    FromNeuron,
    Hello,
    HelloWanted,
    Job,
    JobKey,
    NodeState,
    Refused,
    Started,
    Submit,
    Text,
    Tokens,
)
from common.sockets import bus_dealer
from tests.support.fake_engine import answer, tokenise, write_model
from tests.support.harness import Neuron


class Peer:
    """A gateway made of one socket."""

    def __init__(self, neuron: Neuron, *, receive_limit: int | None = None) -> None:
        self.incarnation = new_incarnation()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        if receive_limit is None:
            self.socket = bus_dealer(self._context, neuron.endpoint, self.incarnation)
        else:
            self.socket = self._context.socket(zmq.DEALER)
            self.socket.setsockopt(zmq.ROUTING_ID, self.incarnation.encode())
            self.socket.setsockopt(zmq.RCVHWM, receive_limit)
            self.socket.setsockopt(zmq.RCVBUF, 4096)
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.connect(neuron.endpoint)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(linger=0)
        self._context.term()

    def send(self, message: object) -> None:
        assert self.socket.poll(5000, zmq.POLLOUT)
        self.socket.send(encode(message))  # type: ignore[arg-type]

    def hello(self) -> NodeState:
        self.send(Hello(version=PROTOCOL_VERSION, incarnation=self.incarnation, role="gateway", name="test"))
        state: NodeState = self.receive(NodeState)
        return state

    def receive(self, *kinds: type, timeout_s: float = 10.0):  # type: ignore[no-untyped-def]
        """Return the next message of one of these kinds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.socket.poll(100):
                message: FromNeuron = decode_from_neuron(self.socket.recv())
                if isinstance(message, kinds):
                    return message
        raise AssertionError(f"no {kinds} within {timeout_s} s")


def job(prompt: str, **options: object) -> Job:
    values = {"id": new_job_id(), "attempt": 1, "model": "m", "request_id": "r", "input": Text(text=prompt), **options}
    return Job(**values)  # type: ignore[arg-type]


@pytest.fixture
def neuron(tmp_path: Path) -> Iterator[Neuron]:
    models = [{"id": "m", "source": f"file:{write_model(tmp_path / 'm.json', token_s=0.002)}", "vram_mb": 100}]
    with Neuron(tmp_path / "n", models=models, engine="tests.support.fake_engine", preload=["m"]) as started:
        started.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        yield started


def test_a_job_streams_exactly_its_tokens(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.hello()
        wanted = job("one two three", max_tokens=20)
        peer.send(Submit(jobs=[wanted]))
        assert peer.receive(Started).items[0].prompt_tokens == 3
        ids: list[int] = []
        while True:
            message = peer.receive(Tokens, Ended)
            if isinstance(message, Ended):
                break
            for item in message.items:
                assert item.at == len(ids)
                ids += item.ids
        assert message.items[0].total == len(ids) == 20
        assert ids == answer(tokenise("one two three"), 20)


def test_garbage_is_counted_and_changes_nothing(neuron: Neuron) -> None:
    rng = random.Random(7)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", neuron.port)) as raw:
            raw.sendall(rng.randbytes(rng.randrange(1, 2000)))
    with Peer(neuron) as peer:
        peer.hello()
        for _ in range(100):
            peer.socket.send(rng.randbytes(rng.randrange(0, 200)))
        peer.socket.send_multipart([b"a", b"b", b"c"])
        peer.socket.send(b"\x81\xa4kind\xa7unheard")
        wanted = job("x", max_tokens=3)
        peer.send(Submit(jobs=[wanted]))
        assert peer.receive(Ended).items[0].total == 3
    status = neuron.status()
    assert status["undecodable"] >= 102
    assert "undecodable frame" in neuron.log


def test_a_stranger_is_asked_to_say_hello_first(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.send(Beat(incarnation=peer.incarnation))
        peer.receive(HelloWanted)


def test_another_major_version_is_refused_by_name(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.send(Hello(version=(99, 0), incarnation=peer.incarnation, role="gateway", name="future"))
        refused = peer.receive(Refused)
        assert "99.0" in refused.message


def test_an_oversize_frame_costs_only_its_connection(neuron: Neuron) -> None:
    with Peer(neuron) as peer, Peer(neuron) as other:
        peer.hello()
        other.hello()
        peer.socket.send(bytes(129 * 2**20))
        other.send(Submit(jobs=[job("x", max_tokens=3)]))
        assert other.receive(Ended).items[0].total == 3


def test_a_thousand_connects_and_drops_leave_nothing(neuron: Neuron) -> None:
    for _ in range(1000):
        with socket.create_connection(("127.0.0.1", neuron.port)):
            pass
    with Peer(neuron) as peer:
        peer.hello()
        peer.send(Submit(jobs=[job("x", max_tokens=3)]))
        assert peer.receive(Ended).items[0].total == 3


def test_a_gateway_that_vanishes_has_its_jobs_aborted(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.hello()
        peer.send(Submit(jobs=[job(f"p{i}") for i in range(12)]))
        neuron.wait_for(lambda s: len(s["jobs"]) == 12)
    status = neuron.wait_for(lambda s: not s["jobs"], timeout_s=7)
    assert status["state"]["models"][0]["running"] == 0


def test_a_gateway_that_goes_silent_loses_its_lease(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.hello()
        peer.send(Submit(jobs=[job("p")]))
        peer.receive(Started)
        neuron.wait_for(lambda s: not s["jobs"], timeout_s=8)


def test_a_job_the_neuron_does_not_have_is_reported_lost(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.hello()
        peer.send(Beat(incarnation=peer.incarnation, jobs=[JobKey("never-submitted", 1)]))
        failed = peer.receive(Failed)
        assert failed.items[0].code == "job_lost"


def test_abort_frees_the_slot_within_a_step_in_every_state(neuron: Neuron) -> None:
    with Peer(neuron) as peer:
        peer.hello()
        jobs = [job(f"p{i}") for i in range(12)]  # eight slots: some run, some wait
        peer.send(Submit(jobs=jobs))
        neuron.wait_for(lambda s: sorted(j["state"] for j in s["jobs"]) == ["queued"] * 4 + ["running"] * 8)
        peer.send(Abort(jobs=[JobKey(j.id, 1) for j in jobs]))
        peer.send(Submit(jobs=[job("after", max_tokens=2)]))
        assert peer.receive(Ended).items[0].total == 2
        assert neuron.status()["jobs"] == []


def test_a_slow_gateway_is_held_loses_nothing_and_nobody_else_notices(tmp_path: Path) -> None:
    # Wide tokens fill the socket buffers and the queue behind them before the answer is over.
    wide = write_model(tmp_path / "wide.json", token_s=0.001, text="x" * (8192 * 3000), bytes_per_token=8192)
    quick_model = write_model(tmp_path / "quick.json", token_s=0.002)
    models = [
        {"id": "wide", "source": f"file:{wide}", "vram_mb": 300, "context": 8000},
        {"id": "m", "source": f"file:{quick_model}", "vram_mb": 300},
    ]
    devices = [{"kind": "cpu", "memory_mb": 1000, "threads": 1}] * 2
    with (
        Neuron(tmp_path / "n", devices=devices, models=models, engine="tests.support.fake_engine",
               preload=["wide", "m"]) as neuron,
        Peer(neuron, receive_limit=1) as slow,
        Peer(neuron) as quick,
    ):  # fmt: skip
        neuron.wait_for(lambda s: all(m["status"] == "loaded" for m in s["state"]["models"]))
        slow.hello()
        quick.hello()
        wanted = job("slow", model="wide")
        slow.send(Submit(jobs=[wanted]))
        slow.receive(Started)
        deadline = time.monotonic() + 30
        while "holding its tokens" not in neuron.log:
            assert time.monotonic() < deadline, neuron.log
            slow.send(Beat(incarnation=slow.incarnation, jobs=[JobKey(wanted.id, 1)]))
            time.sleep(0.1)
        quick.send(Submit(jobs=[job("quick", max_tokens=300)]))
        times: list[float] = []
        while not isinstance(message := quick.receive(Tokens, Ended), Ended):
            times.append(time.monotonic())
        assert max(b - a for a, b in itertools.pairwise(times)) < 0.5
        held, merged = 0, False
        while not isinstance(message := slow.receive(Tokens, Ended), Ended):
            for item in message.items:
                assert item.at == held
                held += len(item.ids)
                merged = merged or len(item.ids) > 1
            if held % 500 < 2:
                slow.send(Beat(incarnation=slow.incarnation, jobs=[JobKey(wanted.id, 1)]))
        assert message.items[0].total == held == 3000
        assert merged
