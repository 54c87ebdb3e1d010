"""The engine loop on the demo model: tokens/s, and the share of its time inside llama.cpp, at 1, 4, 8, 16 sequences."""

import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from common.messages import LoadModel, Run, Sampling, StartedItem, Task, ToWorker
from neuron.worker.engine import Chunk, DecodeResult
from neuron.worker.llama_engine import create_engine
from neuron.worker.loop import Loop
from tests.support.harness import DEMO_MODEL
from tests.support.tasks import text_lane

PROMPT_TOKENS = 128
NEW_TOKENS = 64
ROUNDS = 3
SEQUENCES = (1, 4, 8, 16)


class _Link:
    """A bus that ends in a list."""

    def __init__(self) -> None:
        self.inbox: list[ToWorker] = []

    def receive(self) -> list[ToWorker]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        return True

    def wait(self, timeout_s: float) -> None:
        time.sleep(0.005)

    def wake(self) -> None:
        pass


class EngineLoop:
    """A worker's loop in this process. Use as a context manager."""

    def __init__(self, cells: int, parallel: int) -> None:
        self.inside_s = 0.0
        """Seconds in llama_decode during the last `rate`."""
        self.elapsed_s = 0.0
        self._link = _Link()
        self._loop = Loop(create_engine(2, "cpu"), self._link, incarnation="bench", device="CPU-0", step_budget_s=0.25)
        self._serial = 0
        self._link.inbox.append(
            LoadModel(model="demo", path=str(DEMO_MODEL), context=2048, kv_tokens=cells, parallel=parallel)
        )
        while "demo" not in self._loop.lanes:
            self._loop.step()
        self._lane = text_lane(self._loop.lanes, "demo")
        self._decode = self._lane.model.decode
        self._lane.model.decode = self._timed  # type: ignore[method-assign]

    def rate(self, sequences: int) -> float:
        """Return decode tokens/s of so many sequences at once, their prompts being computed before."""
        self._link.inbox.append(Run(tasks=[_task(self._serial + i) for i in range(sequences)]))
        self._serial += sequences
        self._loop.step()
        lane = self._lane
        while any(not g.is_decoding for g in lane.slots.seated):
            self._loop.step()
        self.inside_s, began = 0.0, time.perf_counter()
        produced = sequences * NEW_TOKENS - sum(g.output_n for g in lane.slots.seated)
        while lane.is_busy:
            self._loop.step()
        self.elapsed_s = time.perf_counter() - began
        return produced / self.elapsed_s

    def _timed(self, chunks: Sequence[Chunk]) -> DecodeResult:
        began = time.perf_counter()
        result = self._decode(chunks)
        self.inside_s += time.perf_counter() - began
        return result

    def __enter__(self) -> "EngineLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close()


def measure() -> dict[str, Any]:
    """Run all points, alternating, and return medians over the rounds."""
    rates: dict[int, list[float]] = {n: [] for n in SEQUENCES}
    shares: dict[int, list[float]] = {n: [] for n in SEQUENCES}
    with EngineLoop(max(SEQUENCES) * (PROMPT_TOKENS + NEW_TOKENS + 8), max(SEQUENCES)) as loop:
        for round_number in range(ROUNDS + 1):  # the first warms up and does not count
            for sequences in SEQUENCES:
                rate = loop.rate(sequences)
                if round_number:
                    rates[sequences].append(rate)
                    shares[sequences].append(loop.inside_s / loop.elapsed_s)
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": ROUNDS,
        "decode_tokens_per_s": {n: round(statistics.median(r), 1) for n, r in rates.items()},
        "share_inside_llama": {n: round(statistics.median(s), 4) for n, s in shares.items()},
    }


def _task(serial: int) -> Task:
    tokens = [1000 + (serial * 7919 + i * 31) % 40000 for i in range(PROMPT_TOKENS)]
    started = StartedItem(job=str(serial), attempt=1, prompt_tokens=len(tokens), max_tokens=NEW_TOKENS)
    return Task(
        job=str(serial), attempt=1, gateway="g", model="demo", request_id="bench", tokens=tokens,
        sampling=Sampling(temperature=0.0, ignore_eos=True), max_tokens=NEW_TOKENS, started=started,
    )  # fmt: skip
