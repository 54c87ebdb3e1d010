"""What encryption costs: events through gateway and bus with CURVE, beside the same in plain text, in turns."""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from common.keys import make_pair
from cortex.bus_keys import KEY_FILE, KNOWN_FILE, trust
from neuron.broker.authorized import authorize
from tests.bench.load import send_all
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron

ROUNDS = 15
STREAMS = 16
LENGTH = 500
"""Tokens of an answer."""
BAR = 0.9


def measure() -> dict[str, Any]:
    """Return events a second and CPU a thousand events, encrypted and plain; medians of pairs of rounds.

    The pair of a round runs back to back, so what else the machine does meets both.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        chains = {mode: _start(running, Path(folder) / mode, mode) for mode in ("curve", "plaintext")}
        rounds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in chains}
        for number in range(ROUNDS + 1):
            for mode in list(chains) if number % 2 else list(chains)[::-1]:
                figures = _round(*chains[mode])
                if number:  # the first one warms both up
                    rounds[mode].append(figures)
    speeds = [a[0] / b[0] for a, b in zip(rounds["curve"], rounds["plaintext"], strict=True)]
    return {
        "rounds": ROUNDS,
        "streams": STREAMS,
        "events_per_s": {m: round(statistics.median(r[0] for r in rows)) for m, rows in rounds.items()},
        "cpu_ms_per_1000_events": {m: round(statistics.median(r[1] for r in rows), 2) for m, rows in rounds.items()},
        "speed_curve_of_plaintext": round(statistics.median(speeds), 4),
        "bar": BAR,
        "passed": statistics.median(speeds) >= BAR,
    }


def _start(running: ExitStack, folder: Path, mode: str) -> tuple[Neuron, Gateway]:
    folder.mkdir()
    source = f"file:{write_model(folder / 'm.json', length=LENGTH)}"
    models = [{"id": "m", "source": source, "vram_mb": 100, "parallel": STREAMS}]
    neuron = running.enter_context(
        Neuron(folder / "n", devices=[{"kind": "cpu", "memory_mb": 1024, "threads": 1}], models=models,
               engine="tests.support.fake_engine", preload=["m"], security=mode)
    )  # fmt: skip
    neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
    if neuron.credentials is not None:
        own = make_pair(folder / "g" / KEY_FILE)
        authorize(neuron.folder / "keys" / "authorized_keys", "gateway", own.public.hex(), "bench")
        trust(folder / "g" / KNOWN_FILE, neuron.name, neuron.credentials.neuron)
    return neuron, running.enter_context(Gateway(folder / "g", neurons=[neuron], workers=1))


def _round(neuron: Neuron, gateway: Gateway) -> tuple[float, float]:
    """Return events a second, and milliseconds of CPU time of gateway and neuron a thousand events."""
    processes = [p for d in (neuron, gateway) for p in (psutil.Process(d.pid), *psutil.Process(d.pid).children(True))]
    before = _cpu_s(processes)
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": f"stream {n}"}], "max_tokens": LENGTH}
        for n in range(STREAMS)
    ]
    elapsed_s, answers = send_all(f"{gateway.url}/v1/chat/completions", bodies)
    events = sum(a.events for a in answers)
    return events / elapsed_s, (_cpu_s(processes) - before) * 1e6 / events


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in processes)
