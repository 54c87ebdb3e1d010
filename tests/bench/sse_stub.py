"""An upstream that streams chat chunks at a given pace, for gateways that speak HTTP to what is behind them.

`python -m tests.bench.sse_stub PORT TOKENS_PER_S [SLOTS]`: the bytes are those that our gateway writes, a chunk each.
With pace 0 an answer is one token, whole at once, streamed or not as the request says. SLOTS: as for tests.bench.pump.
"""

import asyncio
import sys
import time
from typing import cast

import uvloop

from tests.bench.ticks import Engines

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
START = (
    b'{"id":"chatcmpl-875aeef9744886dceacd53a6ad3d2dcd","object":"chat.completion.chunk","created":1795600439,'
    b'"model":"instant","choices":[{"index":0,"delta":'
)
ROLE = START + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}'
STOP = START + b'{},"logprobs":null,"finish_reason":"stop"}]}'
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1795600439,"model":"instant","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"word"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)


def event() -> bytes:
    """Return the event of a token that is sent now."""
    text = b'{"content":"%018d "}' % time.monotonic_ns()
    return b"data: " + START + text + b',"logprobs":null,"finish_reason":null}]}\n\n'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


BEGINNING = HEAD + _chunk(b"data: " + ROLE + b"\n\n")
END = _chunk(b"data: " + STOP + b"\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, engines: "Engines[Upstream] | None") -> None:
        self._engines = engines
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer a request when its body is complete."""
        self._data += data
        head, gap, body = self._data.partition(b"\r\n\r\n")
        if not gap:
            return
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        if len(body) < int(length):
            return
        self._data = b""
        if b'"stream":true' not in body.replace(b" ", b""):
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE) + WHOLE
            )
        elif self._engines is not None:
            self.transport.write(BEGINNING)
            self._engines.add(self)
        else:
            self.transport.write(BEGINNING + _chunk(event()) + END)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the stream."""
        if self._engines is not None:
            self._engines.discard(self)


def _push(streams: list[Upstream]) -> None:
    piece = _chunk(event())
    for stream in streams:
        stream.transport.write(piece)


async def _main(port: int, pace: float, slots: int = 0) -> None:
    engines: Engines[Upstream] | None = Engines(pace, slots) if pace else None
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(engines), "127.0.0.1", port, backlog=4096)
    if engines is None:
        await server.serve_forever()
    else:
        await engines.run(_push)


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])))
