"""What idle conversations cost who runs beside them, and what an unload and reload costs them."""

import contextlib
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common.endpoint import Endpoint
from common.messages import Done, Load, Unload
from neuron.ctl.client import NeuronClient
from tests.bench.against_llama import CELLS, FLAGS, PAIRS
from tests.bench.agents import NO_END, demo_chain
from tests.bench.llama_server import LlamaServer
from tests.bench.load import Answer, send_all
from tests.support.harness import DEMO_MODEL, Neuron

IDLE, IDLE_TOKENS = 8, 1500
STREAM_TOKENS = 400
SETTLE_S = 5.0
TURN_TOKENS = 80


def measure_idle_neighbours() -> dict[str, Any]:
    """Tokens/s of one stream beside resident idle conversations, against llama-server in the same situation."""
    ours: list[float] = []
    theirs: list[float] = []
    options = (*FLAGS, "--ctx-size", str(CELLS), "--parallel", str(IDLE + 1))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sides = (
            (ours, stack.enter_context(demo_chain(IDLE + 1))[1]),
            (theirs, stack.enter_context(LlamaServer(Path(folder), DEMO_MODEL, *options)).url),
        )
        for number in range(PAIRS):
            for readings, url in sides:
                readings.append(_stream_rate(url, number))
    return {
        "pairs": PAIRS,
        "ours_tokens_per_s": round(statistics.median(ours), 1),
        "llama_server_tokens_per_s": round(statistics.median(theirs), 1),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
    }


def measure_reload() -> dict[str, Any]:
    """p50 TTFT of the next turn of warm conversations, and of the one after an unload and reload of the model."""
    warm: list[float] = []
    reloaded: list[float] = []
    with demo_chain(IDLE) as (neuron, url):
        for number in range(PAIRS):
            prompts = [_prompt(number * 100 + i, IDLE_TOKENS // 2) for i in range(IDLE)]
            for prompt in prompts:
                _ask(url, prompt, 8)
            for readings, is_reloaded in ((warm, False), (reloaded, True)):
                if is_reloaded:
                    _reload(neuron)
                for i, prompt in enumerate(prompts):
                    prompt += _prompt(number * 100 + i + 50 + 20 * is_reloaded, TURN_TOKENS)
                    readings.append(_ask(url, prompt, 8).first_s)
    return {
        "conversations": IDLE,
        "rounds": PAIRS,
        "warm_first_token_ms": round(statistics.median(warm) * 1000, 1),
        "reloaded_first_token_ms": round(statistics.median(reloaded) * 1000, 1),
        "ratio": round(statistics.median(reloaded) / statistics.median(warm), 3),
    }


def _stream_rate(url: str, number: int) -> float:
    for i in range(IDLE):
        _ask(url, _prompt(number * 100 + i, IDLE_TOKENS), 8)
    time.sleep(SETTLE_S)
    answer = _ask(url, _prompt(number * 100 + 99, 20), STREAM_TOKENS)
    return (STREAM_TOKENS - 1) / (answer.whole_s - answer.first_s)


def _reload(neuron: Neuron) -> None:
    with NeuronClient(Endpoint("127.0.0.1", neuron.port), 60.0) as client:
        client.ask(lambda r: Unload(request=r, model="demo"), Done)
        client.ask(lambda r: Load(request=r, model="demo"), Done)


def _ask(url: str, prompt: list[int], count: int) -> Answer:
    body = {"model": "demo", "prompt": prompt, "max_tokens": count, "temperature": 0, "logit_bias": NO_END}
    return send_all(f"{url}/v1/completions", [body])[1][0]


def _prompt(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1000, 40000), k=length)
