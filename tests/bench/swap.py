"""A request for a cold model on a device that holds one: its first byte against unload, load and prefill apart."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.harness import DEMO_MODEL, Gateway, Neuron

ROUNDS = 7
PROMPT = "The capital of France is Paris, and the river that runs through it is called"
DEVICE = {"kind": "cpu", "memory_mb": 600, "threads": 2}


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Return medians in seconds, and the median ratio of a swap to the sum of its parts in the same round."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with (
            Neuron(base / "n", devices=[DEVICE], models=[_profile(base, m) for m in ("a", "b")]) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
        ):
            for model in ("a", "b"):  # the first loads read the file from the disk, and correct the estimate
                _first_byte(gateway, model)
            readings = [_round(neuron, gateway) for _ in range(rounds)]
    figures: dict[str, Any] = {"rounds": rounds}
    for name in readings[0]:
        figures[name] = round(statistics.median(r[name] for r in readings), 3)
    return figures


def _round(neuron: Neuron, gateway: Gateway) -> dict[str, float]:
    """Take the parts one by one with b, then have a loaded and ask for b."""
    unload_s = _order(neuron, "unload", "b")
    load_s = _order(neuron, "load", "b")
    prefill_s = _first_byte(gateway, "b")
    _first_byte(gateway, "a")
    swap_s = _first_byte(gateway, "b")
    parts_s = unload_s + load_s + prefill_s
    return {
        "unload_s": unload_s,
        "load_s": load_s,
        "prefill_s": prefill_s,
        "swap_s": swap_s,
        "swap_of_parts": swap_s / parts_s,
    }


def _order(neuron: Neuron, verb: str, model: str) -> float:
    """Return the seconds until neuronctl is told that it is done, less those that neuronctl itself takes."""
    began = time.monotonic()
    neuron.ctl("status")
    own_s, began = time.monotonic() - began, time.monotonic()
    done = neuron.ctl(verb, model)
    if done.returncode != 0:
        raise RuntimeError(f"neuronctl {verb} {model}: {done.stderr.strip()}")
    return max(0.0, time.monotonic() - began - own_s)


def _first_byte(gateway: Gateway, model: str) -> float:
    """Return the seconds to the first text of a stream; comments that say why it waits do not count."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
    began, first_s = time.monotonic(), None
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=body, timeout=120) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{model}: {response.read().decode()}")
        for line in response.iter_lines():
            if line.startswith("data: ") and first_s is None:
                first_s = time.monotonic() - began
    if first_s is None:
        raise RuntimeError(f"{model} answered without a byte")
    return first_s


def _profile(folder: Path, model: str) -> dict[str, Any]:
    path = folder / f"{model}.gguf"
    path.symlink_to(DEMO_MODEL)
    row = {"id": model, "source": f"file:{path}", "vram_mb": 400}
    return {**row, "context": 512, "kv_tokens": 1024, "parallel": 2}
