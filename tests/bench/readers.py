"""Many readers of server-sent events in one process, as cheap as Python has them: they count, and decode nothing."""

import asyncio
import re
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

import orjson
import uvloop

MARK = {"openai": b'"content":"', "anthropic": b'"text":"'}
"""What stands before the text of an event, and once in each."""
STAMP = 18
"""Digits of a token's text: when it was sent, in monotonic ns; one space follows."""


@dataclass
class Counts:
    """What all readers have seen since they were told to count."""

    events: int = 0
    tokens: int = 0
    delays_ms: list[float] = field(default_factory=list)
    """Of every piece that was read, its last token's."""
    added_gaps_ms: list[float] = field(default_factory=list)
    """By how much longer than its source a stream's reader waited for the next piece; 0 where it was shorter."""
    lost: int = 0
    """Connections that ended before they were told to."""


class Reader(asyncio.Protocol):
    """One connection with one stream."""

    def __init__(self, head: bytes, mark: bytes, counts: Counts) -> None:
        self._head, self._mark, self._counts = head, mark, counts
        self.has_begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._is_wanted = True
        self._delay_ms = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        """Count."""
        events = data.count(self._mark)
        if not events:
            return
        counts = self._counts
        counts.events += events
        # Text in which tokens were merged is longer: the spaces tell.
        counts.tokens += data.count(b" ", data.find(self._mark)) if events == 1 else _tokens(data, self._mark)
        at = data.rfind(self._mark) + len(self._mark)
        stamp = data[at : at + STAMP]
        if stamp.isdigit():
            delay_ms = (time.monotonic_ns() - int(stamp)) / 1e6
            counts.delays_ms.append(delay_ms)
            counts.added_gaps_ms.append(max(0.0, delay_ms - self._delay_ms))
            self._delay_ms = delay_ms
            if not self.has_begun.done():
                self.has_begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note an end that nobody wanted."""
        if self._is_wanted:
            self._counts.lost += 1
            if not self.has_begun.done():
                self.has_begun.set_exception(RuntimeError("closed before its first token"))

    def close(self) -> None:
        """Leave."""
        self._is_wanted = False
        if self._transport is not None:
            self._transport.abort()


def _tokens(data: bytes, mark: bytes) -> int:
    return sum(piece[: piece.find(b'"')].count(b" ") for piece in data.split(mark)[1:])


def request(url: str, dialect: str, model: str, *, is_stream: bool = True) -> tuple[str, int, bytes]:
    """Return host, port and the bytes of a request; one that is not streamed asks for a single token."""
    address = urlsplit(url)
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    body: dict[str, Any] = {"model": model, "stream": is_stream, "messages": [{"role": "user", "content": "hi"}]}
    if not is_stream:
        body["max_tokens"] = 1
    elif dialect == "anthropic":
        body["max_tokens"] = 50_000_000
    payload = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer x\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    assert address.hostname is not None
    assert address.port is not None
    return address.hostname, address.port, head.encode() + payload


class Meter:
    """What is measured of a side while its events are counted."""

    def __init__(self, cpu_s: Callable[[], float], rss: Callable[[], int]) -> None:
        self._cpu_s, self._rss = cpu_s, rss
        self.cpu_s = 0.0
        self.rss = 0

    def begin(self) -> None:
        """Counting begins."""
        self.cpu_s = -self._cpu_s()

    def end(self) -> None:
        """It has ended; the streams are still open."""
        self.cpu_s += self._cpu_s()
        self.rss = self._rss()


def read(url: str, dialect: str, model: str, streams: int, seconds: float, meter: Meter) -> tuple[Counts, float, float]:
    """Open all streams; when all have begun, count for `seconds`. Return counts, seconds, and this process's CPU."""

    async def run() -> tuple[Counts, float, float]:
        counts, loop = Counts(), asyncio.get_running_loop()
        host, port, head = request(url, dialect, model)
        readers = [Reader(head, MARK[dialect], counts) for _ in range(streams)]
        for some in range(0, streams, 50):
            batch = readers[some : some + 50]
            await asyncio.gather(*(loop.create_connection(lambda r=r: r, host, port) for r in batch))  # type: ignore[misc]
            await asyncio.wait_for(asyncio.gather(*(r.has_begun for r in batch)), 60)
        await asyncio.sleep(0.5)
        counts.events = counts.tokens = 0
        counts.delays_ms.clear()
        counts.added_gaps_ms.clear()
        began, cpu = time.perf_counter(), _cpu()
        meter.begin()
        await asyncio.sleep(seconds)
        took, cpu = time.perf_counter() - began, _cpu() - cpu
        meter.end()
        snapshot = replace(counts, delays_ms=list(counts.delays_ms), added_gaps_ms=list(counts.added_gaps_ms))
        for reader in readers:
            reader.close()
        await asyncio.sleep(0.2)
        return snapshot, took, cpu

    return uvloop.run(run())


def first_bytes(url: str, model: str, count: int) -> list[float]:
    """Return milliseconds from sending a streaming request to its first byte, over one connection."""
    host, port, head = request(url, "openai", model)
    waits = []
    with socket.create_connection((host, port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            client.sendall(head)
            data = client.recv(65536)
            waits.append((time.perf_counter() - began) * 1000)
            while not data.endswith(b"0\r\n\r\n"):
                data += client.recv(65536)
    return waits


def requests_s(url: str, model: str, connections: int, seconds: float) -> float:
    """Return answers a second that are not streamed, each connection asking again when it is answered."""

    async def run() -> float:
        host, port, head = request(url, "openai", model, is_stream=False)
        ends_at, done = time.perf_counter() + seconds, 0

        async def ask() -> None:
            nonlocal done
            reader, writer = await asyncio.open_connection(host, port)
            while time.perf_counter() < ends_at:
                writer.write(head)
                answer = await reader.readuntil(b"\r\n\r\n")
                if b" 200 " not in answer[:20]:
                    raise RuntimeError(answer.decode())
                length = re.search(rb"content-length: *(\d+)", answer, re.IGNORECASE)
                assert length is not None
                await reader.readexactly(int(length[1]))
                done += 1
            writer.close()

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(connections)))
        return done / (time.perf_counter() - began)

    return uvloop.run(run())


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
