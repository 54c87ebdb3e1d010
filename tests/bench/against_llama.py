"""The worker against llama.cpp's own benchmark, and the whole chain against its own server. Pairs alternate.

Same model file, threads, cells, batch sizes and attention on both sides. Ratios are medians over the pairs of a run.
"""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.engine import NEW_TOKENS, PROMPT_TOKENS, EngineLoop
from tests.bench.llama_server import LlamaServer
from tests.bench.llama_tools import build
from tests.bench.load import Answer, send_all
from tests.support.harness import DEMO_MODEL, DEMO_SOURCE, Gateway, Neuron

PAIRS = 7
POINTS = (1, 4, 8, 16)
CELLS = 16384
HTTP_PROMPT, HTTP_NEW = 300, 64
FLAGS = ("--threads", "2", "--batch-size", "512", "--ubatch-size", "224", "--flash-attn", "off", "--kv-unified")
"""What our engine uses for this model and this many cells (neuron/worker/llama_engine.py)."""

Sample = dict[int, dict[str, float]]
"""By point: figures by name."""


def measure_decode() -> dict[str, Any]:
    """Decode rate at each number of sequences, against llama-batched-bench."""
    with EngineLoop(CELLS, max(POINTS)) as loop:
        return _pairs(lambda: {n: {"tokens_per_s": loop.rate(n)} for n in POINTS}, _batched_bench)


def measure_http() -> dict[str, Any]:
    """Tokens/s and p50 time to the first token, all clients at once, against llama-server."""
    profile = {"id": "demo", "source": DEMO_SOURCE, "context": 8192, "kv_tokens": CELLS, "parallel": max(POINTS)}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        cpu = {"kind": "cpu", "memory_mb": 2048, "threads": 2}
        slots = ("--ctx-size", str(CELLS), "--parallel", str(max(POINTS)))
        with (
            Neuron(base / "n", devices=[cpu], models=[profile], preload=["demo"]) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
            LlamaServer(base / "l", DEMO_MODEL, *FLAGS, *slots) as rival,
        ):
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
            serial = iter(range(10**6))
            return _pairs(lambda: _ask(gateway.url, serial), lambda: _ask(rival.url, serial))


def _ask(url: str, serial: Any) -> Sample:
    sample = {}
    for clients in POINTS:
        bodies = [_body(next(serial)) for _ in range(clients)]
        seconds, answers = send_all(f"{url}/v1/completions", bodies)
        sample[clients] = {
            "tokens_per_s": sum(map(_produced, answers)) / seconds,
            "first_token_s": statistics.median(a.first_s for a in answers),
        }
    return sample


def _produced(answer: Answer) -> int:
    produced = int(answer.usage["completion_tokens"])
    assert produced == HTTP_NEW, f"{produced} tokens instead of {HTTP_NEW}: the sides would not do the same work"
    return produced


def _body(serial: int) -> dict[str, Any]:
    prompt = [1000 + (serial * 7919 + i * 31) % 40000 for i in range(HTTP_PROMPT)]
    return {"model": "demo", "prompt": prompt, "max_tokens": HTTP_NEW, "temperature": 0, "ignore_eos": True}


def _batched_bench() -> Sample:
    points = ",".join(map(str, POINTS))
    shape = ("-npp", str(PROMPT_TOKENS), "-ntg", str(NEW_TOKENS), "-npl", points, "--output-format", "jsonl")
    command = [str(build() / "llama-batched-bench"), "-m", str(DEMO_MODEL), "-c", str(CELLS), *FLAGS, *shape]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {row["pl"]: {"tokens_per_s": row["speed_tg"]} for row in rows}


def _pairs(ours: Callable[[], Sample], theirs: Callable[[], Sample]) -> dict[str, Any]:
    """Alternate the two sides; return medians, and the median of the pairs' ratios."""
    pairs = [(ours(), theirs()) for _ in range(PAIRS + 1)][1:]  # the first warms up
    figures: dict[str, Any] = {"pairs": PAIRS}
    for name in pairs[0][0][POINTS[0]]:
        figures[name] = {
            point: {
                "ours": round(statistics.median(a[point][name] for a, _ in pairs), 3),
                "llama.cpp": round(statistics.median(b[point][name] for _, b in pairs), 3),
                "ratio": round(statistics.median(a[point][name] / b[point][name] for a, b in pairs), 3),
            }
            for point in POINTS
        }
    return figures
