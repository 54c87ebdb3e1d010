"""Ten minutes of random load over three neurons, while workers, neurons and links are broken at random.

At the end: every request has ended once, with a well-formed end and no altered answer; no neuron has a job, a slot or a
promise left; no process is left; and the memory of the gateway's processes and of a neuron's supervisor does not grow.
"""

import argparse
import json
import shutil
import statistics
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from neuron.ctl.client import NoAnswer
from tests.soak.chaos import Chaos
from tests.soak.clients import Clients
from tests.support.fake_engine import write_model
from tests.support.harness import ROOT, Gateway, Neuron
from tests.support.proxy import Proxy

CPU = {"kind": "cpu", "memory_mb": 1024, "threads": 1}
SAMPLE_S = 2.0
GROWTH_MB_PER_MIN = 1.0
"""Of one process's resident memory, over the second half: more is a leak."""


def soak(folder: Path, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """Run a soak and return its figures. Raises AssertionError where the books do not balance."""
    models = [
        {"id": name, "source": f"file:{write_model(folder / f'{name}.json', token_s=0.004, load_s=0.1)}",
         "vram_mb": 100, "parallel": 4}
        for name in ("both", "left", "right")
    ]  # fmt: skip
    preload = {"a": ["both", "left"], "b": ["both", "right"], "c": []}
    with ExitStack() as stack:

        def start(name: str, port: int | None = None) -> Neuron:
            return stack.enter_context(
                Neuron(folder / name, name=name, port=port, devices=[CPU, CPU], models=models, preload=preload[name],
                       engine="tests.support.fake_engine", restart={"backoff_s": 0.05}, queue_limit=64,
                       watchdog={"step_s": 2.0, "idle_s": 3.0, "term_s": 0.5})
            )  # fmt: skip

        neurons = [start(name) for name in preload]
        proxies = [Proxy(n.port) for n in neurons]
        for proxy in proxies:
            stack.callback(proxy.close)
        endpoints = {n.name: f"127.0.0.1:{p.port}" for n, p in zip(neurons, proxies, strict=True)}
        gateway = stack.enter_context(Gateway(folder / "g", endpoints=endpoints, workers=2, node_grace_s=2.0))
        load = Clients(gateway.url, clients, seed)
        chaos = Chaos(neurons, proxies, gateway, lambda n: start(n.name, n.port), seed)
        watch = Watch(gateway, neurons[-1])
        chaos.run(minutes * 60)
        load.finish()
        resident = watch.finish()
        _check_books(load, neurons)
        growth = {process: _growth(samples) for process, samples in resident.items()}
    figures = {
        "minutes": minutes,
        "seed": seed,
        "requests": load.sent,
        "ended": dict(sorted(load.ended.items())),
        "faults": dict(chaos.done),
        "growth_mb_per_min": {process: round(g, 3) for process, g in growth.items()},
    }
    assert load.wrong == [], load.wrong[:10]
    assert all(g <= GROWTH_MB_PER_MIN for g in growth.values()) or minutes < 5, figures
    return figures


class Watch(threading.Thread):
    """Takes (minutes, MiB) samples of each of the gateway's processes and of a supervisor, by name and pid."""

    def __init__(self, gateway: Gateway, neuron: Neuron) -> None:
        super().__init__(name="watch", daemon=True)
        self._gateway = psutil.Process(gateway.pid)
        self._supervisor = psutil.Process(neuron.pid)
        self._is_over = threading.Event()
        self._samples: dict[str, list[tuple[float, float]]] = {}
        self.start()

    def run(self) -> None:
        """Look every now and then."""
        began = time.monotonic()
        while not self._is_over.wait(SAMPLE_S):
            watched = [("gateway", self._gateway), *(("gateway", p) for p in self._gateway.children())]
            for name, process in [*watched, ("supervisor", self._supervisor)]:
                at = (time.monotonic() - began) / 60
                sample = at, process.memory_info().rss / 2**20
                self._samples.setdefault(f"{name} {process.pid}", []).append(sample)

    def finish(self) -> dict[str, list[tuple[float, float]]]:
        """Return the samples."""
        self._is_over.set()
        self.join(10)
        return self._samples


def _growth(samples: list[tuple[float, float]]) -> float:
    """Return the slope over the second half, in MiB a minute."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return 0.0
    return statistics.linear_regression([x for x, _ in half], [y for _, y in half]).slope


def _check_books(load: Clients, neurons: list[Neuron]) -> None:
    """Assert that clients and neurons agree that all is over, and that nothing is held for anybody."""
    assert sum(load.ended.values()) == load.sent, f"{load.sent} sent, {sum(load.ended.values())} ended"
    broken = {k: n for k, n in load.ended.items() if "broken" in k}
    assert not broken, broken
    for neuron in neurons:
        deadline = time.monotonic() + 20
        while True:
            try:
                status = neuron.status()
            except NoAnswer:
                status = {"jobs": "no answer"}
            idle = status["jobs"] == [] and all(
                not r["running"] for m in status["state"]["models"] for r in m.get("replicas", [])
            )
            if idle:
                break
            assert time.monotonic() < deadline, f"{neuron.name} still has {status}"
            time.sleep(0.2)


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the faults and of the requests")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    folder = ROOT / "build" / "faults" / "soak"  # stays, with the logs of all daemons
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures = soak(folder, arguments.minutes, arguments.clients, arguments.seed)
    text = json.dumps(figures, indent=1)
    print(text)
    folder.with_suffix(".json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
