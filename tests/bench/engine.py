"""The engine loop on the demo model: tokens/s, and the share of its time inside llama.cpp, at 1, 4, 8, 16 sequences."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from common.messages import LoadModel, Run, Sampling, StartedItem, Task, ToWorker
from neuron.worker.engine import Chunk, DecodeResult
from neuron.worker.llama_engine import create_engine
from neuron.worker.loop import Loop
from tests.support.harness import DEMO_MODEL

PROMPT_TOKENS = 128
NEW_TOKENS = 64
ROUNDS = 3
SEQUENCES = (1, 4, 8, 16)


class _Link:
    """A bus that ends in a list."""

    def __init__(self) -> None:
        self.inbox: list[ToWorker] = []
        self.frames = 0

    def receive(self) -> list[ToWorker]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        self.frames += 1
        return True

    def wait(self, timeout_s: float) -> None:
        time.sleep(0.005)

    def wake(self) -> None:
        pass


def measure() -> dict[str, Any]:
    """Run all points, alternating, and return medians over the rounds."""
    link = _Link()
    loop = Loop(create_engine(2, "cpu"), link, incarnation="bench", device="CPU-0", step_budget_s=0.25)
    cells = max(SEQUENCES) * (PROMPT_TOKENS + NEW_TOKENS + 8)
    link.inbox.append(
        LoadModel(model="demo", path=str(DEMO_MODEL), context=2048, kv_tokens=cells, parallel=max(SEQUENCES))
    )
    while "demo" not in loop.lanes:
        loop.step()
    lane = loop.lanes["demo"]
    inside_s = 0.0
    decode = lane.model.decode

    def timed(chunks: Sequence[Chunk]) -> DecodeResult:
        nonlocal inside_s
        began = time.perf_counter()
        result = decode(chunks)
        inside_s += time.perf_counter() - began
        return result

    lane.model.decode = timed  # type: ignore[method-assign]
    rates: dict[int, list[float]] = {n: [] for n in SEQUENCES}
    shares: dict[int, list[float]] = {n: [] for n in SEQUENCES}
    serial = 0
    for round_number in range(ROUNDS + 1):  # the first warms up and does not count
        for sequences in SEQUENCES:
            link.inbox.append(Run(tasks=[_task(serial + i) for i in range(sequences)]))
            serial += sequences
            loop.step()
            while any(not g.is_decoding for g in lane.slots.seated):
                loop.step()
            inside_s, began, produced = 0.0, time.perf_counter(), -sum(g.output_n for g in lane.slots.seated)
            while lane.is_busy:
                loop.step()
            elapsed = time.perf_counter() - began
            produced += sequences * NEW_TOKENS
            if round_number:
                rates[sequences].append(produced / elapsed)
                shares[sequences].append(inside_s / elapsed)
    loop.close()
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
        sampling=Sampling(temperature=0.0, logit_bias={0: -100.0, 2: -100.0}), max_tokens=NEW_TOKENS, started=started,
    )  # fmt: skip
