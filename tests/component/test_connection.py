"""A connection to a neuron finds the key that the neuron has, among those that it may have."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from common.keys import Credentials, KeyPair, make_pair
from common.sockets import Channel, bus_router, change_key
from cortex.fleet import connection as connection_module
from cortex.fleet.connection import Connection

PATIENCE_S = 10.0


class Neuron:
    """A ROUTER that lets everybody in who knows its key, on the loop of the test."""

    def __init__(self, pair: KeyPair | None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        zap = self.context.socket(zmq.REP)
        zap.bind("inproc://zeromq.zap.01")
        self._zap = Channel(zap, self._let_in)
        self._router = bus_router(self.context, "tcp://127.0.0.1:*", pair)
        self.address = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._channel = Channel(self._router, self._channel_echo)

    def _let_in(self, frames: list[bytes]) -> None:
        self._zap.send([*frames[:2], b"200", b"", b"user", b""])

    def _channel_echo(self, frames: list[bytes]) -> None:
        self._channel.send(frames)

    async def take(self, pair: KeyPair) -> None:
        """Bind anew with another key."""
        address = change_key(self._router, pair)
        for _ in range(200):
            with contextlib.suppress(zmq.ZMQError):  # the port is not free yet
                self._router.bind(address)
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{address} is not free again")

    def close(self) -> None:
        self._channel.close()
        self._zap.close()
        self.context.term()


@contextlib.contextmanager
def connected(neuron: Neuron, credentials: tuple[Credentials, ...]) -> Iterator[tuple[Connection, list[list[bytes]]]]:
    heard: list[list[bytes]] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    clock = asyncio.get_running_loop().time
    connection = Connection("beast", neuron.address, "a" * 32, heard.append, clock, credentials)
    connection.open(context)
    try:
        yield connection, heard
    finally:
        connection.close()
        context.term()
        neuron.close()


async def until(is_true: Callable[[], bool]) -> None:
    ends_at = asyncio.get_running_loop().time() + PATIENCE_S
    while not is_true():
        assert asyncio.get_running_loop().time() < ends_at, "it never came true"
        await asyncio.sleep(0.02)


async def answered(connection: Connection, heard: list[list[bytes]]) -> None:
    """Return once the neuron has answered something new."""
    count = len(heard)

    def speaks() -> bool:
        if not connection.send(b"hello"):
            connection.retry()
        return len(heard) > count

    await until(speaks)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, KeyPair]:
    return {name: make_pair(tmp_path / name) for name in ("own", "old", "new", "third")}


def those(keys: dict[str, KeyPair], *names: str) -> tuple[Credentials, ...]:
    return tuple(Credentials(keys["own"], keys[n].public) for n in names)


@pytest.mark.parametrize("has", ["old", "new"])
def test_whichever_key_it_has_is_found_without_a_wait(
    has: str, keys: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "REOPEN_S", 1e9)

    async def test() -> None:
        with connected(Neuron(keys[has]), those(keys, "old", "new")) as (connection, heard):
            await answered(connection, heard)

    run(test())


def test_it_follows_a_key_that_is_exchanged_and_says_so_once(
    keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        neuron = Neuron(keys["old"])
        with connected(neuron, those(keys, "old")) as (connection, heard):
            await answered(connection, heard)
            connection.settle()
            assert connection.adopt(those(keys, "old", "new"))  # the connection goes on
            await neuron.take(keys["new"])
            await until(lambda: not connection.can_send())
            await answered(connection, heard)
            for _ in range(2):
                connection.settle()
            assert connection.adopt(those(keys, "new"))

    with caplog.at_level("INFO"):
        run(test())
    assert caplog.text.count(f"cortex trust beast {keys['new'].public.hex()} --replace") == 1


def test_a_key_that_is_accepted_no_more_ends_the_connection(keys: dict[str, KeyPair]) -> None:
    async def test() -> None:
        with connected(Neuron(keys["old"]), those(keys, "old")) as (connection, heard):
            await answered(connection, heard)
            assert not connection.adopt(those(keys, "third"))
            said: list[str | None] = []
            await until(lambda: said.append(connection.retry()) or said[-1] is not None)  # type: ignore[func-returns-value]
            assert "another key" in (said[-1] or "")
            assert not connection.can_send()

    run(test())


def test_a_first_key_ends_plain_text(keys: dict[str, KeyPair]) -> None:
    async def test() -> None:
        with connected(Neuron(keys["old"]), ()) as (connection, heard):
            said: list[str | None] = []
            await until(lambda: said.append(connection.retry()) or said[-1] is not None)  # type: ignore[func-returns-value]
            assert "it is encrypted" in (said[-1] or "")
            assert not connection.adopt(those(keys, "old"))
            await answered(connection, heard)

    run(test())
