"""The agent's side of the endpoint: broken, stuck, late and busy answers, at every byte where they may be."""

import asyncio
import time
from collections.abc import Callable

import pytest

from cortex.acp import upstream as upstream_module
from cortex.acp.configuration import Endpoint
from cortex.acp.upstream import Reply, Upstream, UpstreamError
from tests.support.scripted_upstream import Round, ScriptedUpstream

ROUND = Round("some words, and then", [("c", "read_file", {"path": "a.txt"})])
STEP = 41
"""Bytes from one place to the next; a prime, so that the places fall everywhere in an event."""
REST = 3
"""Events after the last one that says anything: why it ended, its usage, [DONE]."""


def ask(url: str, reply: Reply, waits: Callable[[float], None] = lambda _: None, idle_timeout_s: int = 20) -> None:
    """Fill `reply` with what the endpoint says. Raises UpstreamError."""

    async def run() -> None:
        upstream = Upstream()
        try:
            body = {"model": "m", "messages": []}
            async for _ in upstream.stream(Endpoint("default", url, idle_timeout_s=idle_timeout_s), body, reply, waits):
                pass
        finally:
            await upstream.close()

    asyncio.run(run())


def test_a_stream_that_breaks_at_any_byte_is_an_error_unless_all_was_said() -> None:
    whole = ROUND.body()
    said_by = len(b"\n\n".join(whole.split(b"\n\n")[: -REST - 1])) + 1
    places = [*range(0, len(whole), STEP), said_by - 20, said_by + 160, len(whole)]
    with ScriptedUpstream(*(Round(ROUND.text, ROUND.calls, cut=cut) for cut in places)) as upstream:
        for cut in places:
            reply = Reply()
            try:
                ask(upstream.url, reply)
            except UpstreamError:
                assert cut < said_by + 160, f"refused after {cut} of {len(whole)} bytes"
                assert ROUND.text.startswith(reply.text)
            else:
                assert cut >= said_by, f"believed after {cut} of {len(whole)} bytes"
                assert (reply.text, reply.finish) == (ROUND.text, "tool_calls")
                assert reply.calls == [{"id": "c", "name": "read_file", "arguments": '{"path": "a.txt"}'}]


def test_a_stream_that_stalls_at_any_byte_can_be_left_at_once() -> None:
    places = range(0, len(ROUND.body()), 5 * STEP)

    async def leave(url: str, served: Callable[[int], None], number: int) -> None:
        client, reply = Upstream(), Reply()

        async def read() -> None:
            async for _ in client.stream(Endpoint("default", url), {"messages": []}, reply, lambda _: None):
                pass

        reading = asyncio.create_task(read())
        await asyncio.to_thread(served, number)
        await asyncio.sleep(0.02)  # into the stream; wherever it is by now, leaving must work
        began = time.monotonic()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert time.monotonic() - began < 1.0
        await client.close()

    script = [Round(ROUND.text, ROUND.calls, stall="body", cut=cut) for cut in places]
    with ScriptedUpstream(*script) as upstream:
        for number, _ in enumerate(places, 1):
            asyncio.run(leave(upstream.url, upstream.wait_for_requests, number))


def test_late_headers_are_waited_for_and_too_late_ones_are_not() -> None:
    with ScriptedUpstream(Round("late", late_s=0.5), Round("too late", late_s=3.0)) as upstream:
        reply = Reply()
        ask(upstream.url, reply)
        assert reply.text == "late"
        with pytest.raises(UpstreamError, match="nothing came for 1 s"):
            ask(upstream.url, Reply(), idle_timeout_s=1)


def test_a_busy_endpoint_is_asked_again_after_as_long_as_it_says_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(upstream_module, "_MOST_WAIT_S", 0.1)
    busy = [
        Round(status=429, headers={"Retry-After": "0.05"}),
        Round(status=503, headers={"Retry-After": "3600"}),
        Round(status=503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Round(status=429, headers={"Retry-After": "-1"}),
    ]
    with ScriptedUpstream(*busy, Round("at last"), *[Round(status=503)] * 6) as upstream:
        reply, began = Reply(), time.monotonic()
        ask(upstream.url, reply, waits.append)
        assert (reply.text, waits) == ("at last", [0.05, 0.1, 0.1, 0.0])
        assert time.monotonic() - began >= sum(waits)
        with pytest.raises(UpstreamError, match="answered 503"):
            ask(upstream.url, Reply())
        assert len(upstream.requests) == 5 + 6
