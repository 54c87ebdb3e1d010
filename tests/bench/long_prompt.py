"""A long prompt arrives while streams run: the gaps of those streams, and the prompt's own prefill rate."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.bench.report import spread
from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.streams import Stream, chat

PROMPT_TOKENS = 4000
STREAMS = 4
ROUNDS = 5


def measure() -> dict[str, Any]:
    """Alternate undisturbed and disturbed prefills of the same prompt, on the demo model with two threads."""
    profile = {"id": "demo", "source": DEMO_SOURCE, "context": 8192, "kv_tokens": 16384}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with (
            Neuron(base / "n", models=[profile], preload=["demo"]) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
        ):
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
            rounds = [_round(gateway.url, number) for number in range(ROUNDS)]
    gaps = [g for _, _, g in rounds]
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "streams": STREAMS,
        "rounds": ROUNDS,
        "prefill_undisturbed_tokens_per_s": round(statistics.median(r[0] for r in rounds), 1),
        "prefill_disturbed_tokens_per_s": round(statistics.median(r[1] for r in rounds), 1),
        "prefill_ratio": round(statistics.median(r[1] / r[0] for r in rounds), 3),
        "gap_ms": {
            "p50": round(statistics.median(spread(g)["p50"] for g in gaps) * 1000),
            "p99": round(statistics.median(spread(g)["p99"] for g in gaps) * 1000),
            "longest": round(statistics.median(max(g) for g in gaps) * 1000),
            "longest of all rounds": round(max(max(g) for g in gaps) * 1000),
        },
    }


def _round(url: str, number: int) -> tuple[float, float, list[float]]:
    undisturbed = _prefill_rate(url, 2 * number)
    endless = {"max_tokens": 4000, "logit_bias": {"0": -100, "2": -100}}
    streams = [
        Stream(f"{url}/v1/chat/completions", chat("demo", f"Tell story number {i}.", **endless)) for i in range(STREAMS)
    ]
    for stream in streams:
        assert stream.started.wait(60), "a stream did not start"
    began = time.monotonic()
    disturbed = _prefill_rate(url, 2 * number + 1)
    ended = time.monotonic()
    readings = [s.stop() for s in streams]
    return undisturbed, disturbed, [gap for r in readings for gap in r.gaps(began, ended)]


def _prefill_rate(url: str, number: int) -> float:
    """Return tokens/s of a prompt that was never sent before, or it would be cached."""
    prompt = [1000 + (number * 7919 + i * 31) % 40000 for i in range(PROMPT_TOKENS)]
    body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    timings = httpx.post(f"{url}/v1/completions", json=body, timeout=300).json()["timings"]
    return float(timings["prompt_n"] / timings["prompt_ms"] * 1000)
