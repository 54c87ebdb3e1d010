"""Eight streams held to a strict schema, against the same without it, and llama-server with it. Rounds alternate."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.against_llama import FLAGS
from tests.bench.llama_server import LlamaServer
from tests.bench.load import send_all
from tests.support.harness import DEMO_MODEL, DEMO_SOURCE, Gateway, Neuron

CLIENTS, NEW_TOKENS, ROUNDS, CELLS = 8, 96, 7, 8192
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 40,  # nobody comes to its end, so that all sides produce the same number of tokens
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "mood": {"enum": ["calm", "wild", "sad"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "mood", "tags"],
        "additionalProperties": False,
    },
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "cats", "strict": True, "schema": SCHEMA}}


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Tokens/s of all streams together, and the median ratios of the rounds."""
    profile = {"id": "demo", "source": DEMO_SOURCE, "context": 1024, "kv_tokens": CELLS, "parallel": CLIENTS}
    readings: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        cpu = {"kind": "cpu", "memory_mb": 2048, "threads": 2}
        slots = ("--ctx-size", str(CELLS), "--parallel", str(CLIENTS))
        with (
            Neuron(base / "n", devices=[cpu], models=[profile], preload=["demo"]) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
            LlamaServer(base / "l", DEMO_MODEL, *FLAGS, *slots) as rival,
        ):
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
            for number in range(rounds + 1):
                held = {"response_format": FORMAT}
                readings.append(
                    {
                        "with": _rate(gateway.url, number, held),
                        "llama-server": _rate(rival.url, number, held),
                        "without": _rate(gateway.url, number, {"ignore_eos": True}),
                    }
                )
    del readings[0]  # it warms up
    middle = {name: statistics.median(r[name] for r in readings) for name in readings[0]}
    return {
        "rounds": rounds,
        "tokens_per_s": {name: round(rate, 1) for name, rate in middle.items()},
        "of_without": round(statistics.median(r["with"] / r["without"] for r in readings), 3),
        "of_llama_server": round(statistics.median(r["with"] / r["llama-server"] for r in readings), 3),
    }


def _rate(url: str, number: int, extra: dict[str, Any]) -> float:
    bodies = [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": f"Describe {10 * number + i} cats as JSON."}],
            "max_tokens": NEW_TOKENS,
            "temperature": 0.8,
            "seed": i,
            **extra,
        }
        for i in range(CLIENTS)
    ]
    seconds, answers = send_all(f"{url}/v1/chat/completions", bodies)
    produced = sum(int(a.usage["completion_tokens"]) for a in answers)
    assert produced == CLIENTS * NEW_TOKENS, f"{produced} tokens: the sides would not do the same work"
    return produced / seconds
