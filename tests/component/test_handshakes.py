"""A connection that does not come about is told apart from nobody's being there, with what to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from common.endpoint import Endpoint
from common.handshakes import Handshakes, Trouble, explain
from common.keys import Credentials, KeyPair, make_pair
from common.sockets import bus_dealer, bus_router
from neuron.ctl.client import NeuronClient, NoAnswer
from tests.support.harness import free_port

PATIENCE_S = 10.0


@contextmanager
def neuron(pair: KeyPair | None, *, lets_in: bool) -> Iterator[str]:
    """Be a neuron as far as handshakes go; yield its address."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    address = f"tcp://127.0.0.1:{free_port()}"
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    router = bus_router(context, address, pair)
    Answering.sockets = (zap, lets_in)
    try:
        yield address
    finally:
        router.close(linger=0)
        zap.close(linger=0)
        context.term()


class Answering:
    """Who answers the neuron's question whom to let in."""

    sockets: tuple["zmq.Socket[bytes]", bool]

    @classmethod
    def turn(cls) -> None:
        zap, lets_in = cls.sockets
        if zap.poll(20):
            version, request, *_ = zap.recv_multipart()
            zap.send_multipart([version, request, b"200" if lets_in else b"400", b"", b"user", b""])


def trouble_of(address: str, credentials: Credentials | None, expected: set[Trouble]) -> Trouble | None:
    """Return what is found within the time; the expected at once."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = bus_dealer(context, address, "a" * 32, credentials)
    watch = Handshakes(dealer)
    try:
        ends_at = time.monotonic() + (PATIENCE_S if expected else 1.0)
        while (found := watch.trouble()) not in expected:
            if time.monotonic() > ends_at:
                break
            Answering.turn()
        return found
    finally:
        watch.close()
        dealer.close(linger=0)
        context.term()


@pytest.mark.parametrize(
    ("server", "client", "lets_in", "expected"),
    [
        (None, None, True, set()),
        ("a", "a", True, set()),
        ("a", "a", False, {Trouble.KEY_REFUSED}),
        ("a", None, True, {Trouble.OTHER_MECHANISM}),
        ("a", "b", True, {Trouble.BROKEN_OFF}),
        (None, "a", True, {Trouble.BROKEN_OFF, Trouble.OTHER_MECHANISM}),  # which, is a race within libzmq
    ],
)
def test_what_stands_between_two_sides_is_found(
    tmp_path: Path, server: str | None, client: str | None, lets_in: bool, expected: set[Trouble]
) -> None:
    pairs = {name: make_pair(tmp_path / name) for name in ("a", "b", "own")}
    credentials = None if client is None else Credentials(pairs["own"], pairs[client].public)
    with neuron(None if server is None else pairs[server], lets_in=lets_in) as address:
        found = trouble_of(address, credentials, expected)
    assert found in expected if expected else found is None


def test_where_nobody_listens_there_is_no_such_trouble(tmp_path: Path) -> None:
    with neuron(None, lets_in=True):
        assert trouble_of(f"tcp://127.0.0.1:{free_port()}", None, set()) is None


def test_neuronctl_says_what_to_do(tmp_path: Path) -> None:
    with neuron(make_pair(tmp_path / "key"), lets_in=True) as address:
        port = int(address.rpartition(":")[2])
        with NeuronClient(Endpoint("127.0.0.1", port), 0.5) as client, pytest.raises(NoAnswer, match="is encrypted"):
            client.ask(lambda r: None, int)  # type: ignore[arg-type,return-value]
    texts = {explain(t, has_key=has_key, own_key="abc") for t in Trouble for has_key in (True, False)}
    assert len(texts) == 5
    assert any("authorize gateway abc" in t for t in texts)
