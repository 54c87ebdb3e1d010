"""When sources of tokens push: engines with so many slots each, whose steps are spread over the time of one."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

Stream = TypeVar("Stream")
SPREAD = 0.6180339887
"""Of a step, between one engine's and the next one's: however many there are, they come evenly."""
LATE_S = 0.1


class Engines(Generic[Stream]):
    """All streams of a source."""

    def __init__(self, pace: float, slots: int) -> None:
        """`pace`: tokens a second of each stream; `slots`: of each engine, 0 for a single one that takes all."""
        self._period_s = 1 / pace
        self._slots = slots
        self._engines: list[dict[Stream, None]] = []
        self._due: list[tuple[float, int]] = []
        self._wake = asyncio.Event()

    def add(self, stream: Stream) -> None:
        """Begin a stream."""
        for engine in self._engines:
            if not self._slots or len(engine) < self._slots:
                engine[stream] = None
                return
        number = len(self._engines)
        self._engines.append({stream: None})
        phase = number * SPREAD % 1
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + phase * self._period_s, number))
        self._wake.set()

    def discard(self, stream: Stream) -> None:
        """End one."""
        for engine in self._engines:
            engine.pop(stream, None)

    async def run(self, step: Callable[[list[Stream]], None]) -> None:
        """Call `step` with an engine's streams at each of its steps, for ever."""
        loop = asyncio.get_running_loop()
        await self._wake.wait()
        while True:
            due, number = self._due[0]
            now = loop.time()
            if due > now:
                await asyncio.sleep(due - now)
                continue
            late = now - due > LATE_S  # it cannot keep up; what was missed is not sent in a burst
            heapq.heapreplace(self._due, ((now if late else due) + self._period_s, number))
            step(list(self._engines[number]))
            await asyncio.sleep(0)
