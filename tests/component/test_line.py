"""A child's line, both ends of a real socket pair: full, slow, broken, closed."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from common.frames import FrameSocket, pack
from neuron.broker import line as line_module
from neuron.broker.line import Line

MIB = 2**20


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


def test_a_full_socket_refuses_the_next_message_and_loses_none(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].setblocking(False)
    writer, reader = FrameSocket(ends[0]), FrameSocket(ends[1])
    sent = 0
    while writer.send([b"%d" % sent, bytes(10_000)]):
        sent += 1
    assert writer.has_backlog
    got: list[list[bytes]] = []
    while len(got) < sent:
        got += reader.receive()
        writer.flush()
    assert [int(parts[0]) for parts in got] == list(range(sent))
    assert writer.send([b"more"])


def test_a_closed_end_is_told_to_the_reader_and_ignored_by_the_writer(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].close()
    end = FrameSocket(ends[0])
    assert end.send([b"lost"])
    assert not end.has_backlog
    with pytest.raises(EOFError):
        end.receive()


def test_messages_larger_than_the_socket_cross_in_both_directions(ends: tuple[socket.socket, socket.socket]) -> None:
    async def scenario() -> None:
        arrived, all_there = [], asyncio.Event()

        def handle(parts: list[bytes]) -> None:
            arrived.append(parts)
            if len(arrived) == 2:
                all_there.set()

        line = Line(ends[0], handle)
        assert line.send(b"x" * 20 * MIB)
        child = FrameSocket(ends[1])  # blocks, in a thread of its own as the child is a process of its own

        def play_child() -> list[list[bytes]]:
            while not (messages := child.receive()):
                pass
            child.send([b"", b"event", b"y" * 5 * MIB])
            child.send([b"second"])
            return messages

        messages = await asyncio.to_thread(play_child)
        assert messages == [[b"x" * 20 * MIB]]
        await asyncio.wait_for(all_there.wait(), 10)
        assert arrived == [[b"", b"event", b"y" * 5 * MIB], [b"second"]]
        line.close()

    asyncio.run(scenario())


def test_a_child_that_does_not_read_is_refused_more_beyond_the_backlog(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_module, "BACKLOG_BYTES", MIB)

    async def scenario() -> None:
        line = Line(ends[0], lambda parts: None)
        taken = 0
        while line.send(bytes(MIB)):
            taken += 1
            assert taken < 10
        assert taken >= 1
        line.close()

    asyncio.run(scenario())


def test_last_words_are_handled_before_the_line_is_closed_and_half_a_message_is_not(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def scenario() -> None:
        said: list[list[bytes]] = []
        line = Line(ends[0], said.append)
        ends[1].sendall(pack([b"one"]) + pack([b"two"]) + pack([b"three"])[:-1])
        ends[1].close()
        line.drain()
        line.close()
        assert said == [[b"one"], [b"two"]]

    asyncio.run(scenario())


def test_garbage_ends_the_listening_and_a_failing_handler_does_not(
    ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        said = []

        def handle(parts: list[bytes]) -> None:
            said.append(parts)
            if parts == [b"bad"]:
                raise ValueError("handler")

        line = Line(ends[0], handle)
        ends[1].sendall(pack([b"bad"]) + pack([b"good"]))
        line.drain()
        assert said == [[b"bad"], [b"good"]]
        ends[1].sendall(b"\x01\xff\xff\xff\xff")
        line.drain()
        ends[1].sendall(pack([b"unheard"]))
        line.drain()
        assert len(said) == 2
        line.close()

    asyncio.run(scenario())
    assert "message handler failed" in caplog.text
    assert "sends garbage" in caplog.text
