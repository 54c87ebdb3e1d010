"""A neuron that pushes tokens at a given pace: what a gateway can carry shows behind it. A process of its own.

`python -m tests.bench.pump PORT TOKENS_PER_S [SLOTS]`: each job gets that many tokens a second, one a step, all jobs of
a gateway in one message, as from an engine; with SLOTS there are several engines, each with steps of its own. A token's
text is the time at which it was sent (monotonic ns), so the reader knows how long it was on its way.
"""

import asyncio
import sys
import time

import uvloop
import zmq

from common.codec import decode_to_neuron, encode
from common.messages import (
    Abort,
    Claim,
    Claimed,
    Done,
    Ended,
    EndedItem,
    FromNeuron,
    Health,
    HealthReply,
    Hello,
    Job,
    Load,
    Started,
    StartedItem,
    Submit,
    Timings,
    TokenItem,
    Tokens,
)
from common.sockets import Channel, bus_router
from tests.bench.ticks import Engines
from tests.support.fake_neuron import model_state, node_state

MODEL = "instant"
LIMIT = 100_000_000
"""Tokens of a context: no stream ends by itself unless it asks for less."""


class _Stream:
    __slots__ = ("at", "attempt", "gateway", "job", "until")

    def __init__(self, gateway: str, job: Job) -> None:
        self.gateway, self.job, self.attempt, self.at = gateway, job.id, job.attempt, 0
        self.until = job.max_tokens or LIMIT


class Pump:
    """The ROUTER, and the streams of each gateway."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", port: int, pace: float, slots: int) -> None:
        """`pace`: tokens a second of each stream; 0: all of them at once. `slots`: see Engines."""
        self._streams: dict[str, dict[str, _Stream]] = {}
        self._engines: Engines[_Stream] | None = Engines(pace, slots) if pace else None
        self._channel = Channel(bus_router(context, f"tcp://127.0.0.1:{port}"), self._receive)

    async def run(self) -> None:
        """Push until the process is ended."""
        if self._engines is None:
            await asyncio.Event().wait()
        else:
            await self._engines.run(self._step)

    def _step(self, streams: list[_Stream]) -> None:
        by_gateway: dict[str, list[_Stream]] = {}
        for stream in streams:
            by_gateway.setdefault(stream.gateway, []).append(stream)
        for gateway, its in by_gateway.items():
            self._push(gateway, its)

    def _push(self, gateway: str, streams: list[_Stream]) -> None:
        text = f"{time.monotonic_ns():018d} "
        items = [TokenItem(s.job, s.attempt, s.at, text, [7]) for s in streams]
        if self._send(gateway, Tokens(items=items)):
            for stream in streams:
                stream.at += 1
            self._end(gateway, [s for s in streams if s.at >= s.until])

    def _end(self, gateway: str, over: list[_Stream]) -> None:
        for stream in over:
            self._forget(gateway, stream.job)
        if over:
            self._send(gateway, Ended(items=[_ended(stream) for stream in over]))

    def _forget(self, gateway: str, job: str) -> None:
        stream = self._streams.get(gateway, {}).pop(job, None)
        if stream is not None and self._engines is not None:
            self._engines.discard(stream)

    def _receive(self, frames: list[bytes]) -> None:
        gateway, message = frames[0].decode(), decode_to_neuron(frames[1])
        match message:
            case Hello():
                state = model_state(MODEL, parallel=10_000, context=LIMIT)
                self._send(gateway, node_state(state))
            case Health():
                self._send(gateway, HealthReply(request=message.request, status="ok"))
            case Claim():
                self._send(gateway, Claimed(request=message.request, model=message.model, choice=message.choice))
            case Load():
                self._send(gateway, Done(request=message.request, text="loaded"))
            case Submit():
                self._begin(gateway, message.jobs)
            case Abort():
                for key in message.jobs:
                    self._forget(gateway, key.job)
            case _:
                pass

    def _begin(self, gateway: str, jobs: list[Job]) -> None:
        streams = self._streams.setdefault(gateway, {})
        begun = [
            StartedItem(job=j.id, attempt=j.attempt, prompt_tokens=5, cached_tokens=0, max_tokens=LIMIT) for j in jobs
        ]
        self._send(gateway, Started(items=begun))
        new = [_Stream(gateway, job) for job in jobs]
        streams.update({s.job: s for s in new})
        if self._engines is not None:
            for stream in new:
                self._engines.add(stream)
        else:
            text = f"{time.monotonic_ns():018d} "
            for stream in new:
                count = min(stream.until, 64)
                items = [TokenItem(stream.job, stream.attempt, at, text, [7]) for at in range(count)]
                stream.at = count
                self._send(gateway, Tokens(items=items))
            self._end(gateway, new)

    def _send(self, gateway: str, message: FromNeuron) -> bool:
        try:
            self._channel.send([gateway.encode(), encode(message)])
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            for job in list(self._streams.get(gateway, {})):
                self._forget(gateway, job)
        return True


def _ended(stream: _Stream) -> EndedItem:
    timings = Timings(prompt_n=5, prompt_ms=1.0, predicted_n=stream.at, predicted_ms=1.0)
    return EndedItem(
        job=stream.job, attempt=stream.attempt, total=stream.at, reason="length", prompt_tokens=5, timings=timings
    )


async def _main(port: int, pace: float, slots: int = 0) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    await Pump(context, port, pace, slots).run()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])))
