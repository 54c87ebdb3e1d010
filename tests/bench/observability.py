"""What metrics and logs cost: events through a gateway process with them, beside one without, in turns."""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.bench.load import send_all
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron, free_port

ROUNDS = 15
STREAMS = 16
LENGTH = 500
"""Tokens of an answer."""
BAR = 0.97


def measure() -> dict[str, Any]:
    """Return events a second and gateway CPU a thousand events, with and without; medians of pairs of rounds.

    The pair of a round runs back to back, so what else the machine does meets both.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        base = Path(folder)
        source = f"file:{write_model(base / 'm.json', length=LENGTH)}"
        models = [{"id": "m", "source": source, "vram_mb": 100, "parallel": STREAMS}]
        neuron = running.enter_context(
            Neuron(base / "n", devices=[{"kind": "cpu", "memory_mb": 1024, "threads": 1}], models=models,
                   engine="tests.support.fake_engine", preload=["m"])
        )  # fmt: skip
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
        listen = f"127.0.0.1:{free_port()}"
        gateways = {
            "with": running.enter_context(Gateway(base / "on", neurons=[neuron], workers=1, metrics_listen=listen)),
            "without": running.enter_context(
                Gateway(base / "off", neurons=[neuron], workers=1, sections={"log": {"level": "error"}})
            ),
        }
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in gateways}
        for number in range(ROUNDS + 1):
            order = list(gateways) if number % 2 else list(gateways)[::-1]
            for name in order:
                figures = _round(gateways[name])
                if number:  # the first one warms both up
                    rounds[name].append(figures)
    speeds = [on[0] / off[0] for on, off in zip(rounds["with"], rounds["without"], strict=True)]
    costs = [off[1] / on[1] for on, off in zip(rounds["with"], rounds["without"], strict=True)]
    return {
        "rounds": ROUNDS,
        "streams": STREAMS,
        "events_per_s": {n: round(statistics.median(r[0] for r in rows)) for n, rows in rounds.items()},
        "gateway_cpu_ms_per_1000_events": {
            n: round(statistics.median(r[1] for r in rows), 3) for n, rows in rounds.items()
        },
        "speed_with_of_without": round(statistics.median(speeds), 4),
        "cpu_without_of_with": round(statistics.median(costs), 4),
        "bar": BAR,
        "passed": statistics.median(speeds) >= BAR,
    }


def _round(gateway: Gateway) -> tuple[float, float]:
    """Return events a second, and milliseconds of the gateway's CPU time a thousand events."""
    processes = [psutil.Process(gateway.pid), *psutil.Process(gateway.pid).children(recursive=True)]
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
