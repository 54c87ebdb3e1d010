"""A client that costs little: one connection a request, several at a time, raw asyncio streams."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson


class Answer(NamedTuple):
    """One streamed answer."""

    first_s: float
    """From sending the request to the first event with text."""
    whole_s: float
    events: int
    """Events with text."""
    usage: dict[str, Any]
    text: str


class Refused(RuntimeError):
    """An answer that is not 200: the run is void."""


def send_all(url: str, bodies: Sequence[dict[str, Any]]) -> tuple[float, list[Answer]]:
    """POST all bodies at once; return the seconds until the last has ended, and the answers. Raises Refused."""

    async def run() -> tuple[float, list[Answer]]:
        began = time.perf_counter()
        answers = await asyncio.gather(*(_send(url, body) for body in bodies))
        return time.perf_counter() - began, answers

    return asyncio.run(run())


async def _send(url: str, body: dict[str, Any]) -> Answer:
    address = urlsplit(url)
    payload = orjson.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(head.encode() + payload)
    status = await reader.readline()
    if b" 200 " not in status:
        rest = await reader.read()
        raise Refused(f"{status.decode().strip()}: {rest[-500:].decode(errors='replace')}")
    first_s, events, text = 0.0, 0, ""
    usage: dict[str, Any] = {}
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = orjson.loads(line[6:])
        usage = event.get("usage") or usage
        new = "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in event["choices"])
        if new:
            text += new
            events += 1
            first_s = first_s or time.perf_counter() - began
    writer.close()
    await writer.wait_closed()
    return Answer(first_s, time.perf_counter() - began, events, usage, text)
