"""What the gateway can carry: events a second, and what each costs, against a neuron that is never the limit."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.bench import readers
from tests.bench.pump import MODEL
from tests.bench.report import quantile
from tests.support.harness import Gateway, free_port


@contextlib.contextmanager
def pump(pace: float) -> Iterator[str]:
    """Run a neuron that sends `pace` tokens a second to each stream; yield its endpoint."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.pump", str(port), str(pace)])
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def workers_of(gateway: Gateway) -> list[psutil.Process]:
    """Return the gateway's processes that serve."""
    return [p for p in psutil.Process(gateway.process.pid).children(recursive=True) if not p.children()]


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def carry(dialect: str, streams: int, pace: float, *, seconds: float = 4.0, workers: int = 1) -> dict[str, Any]:
    """Return what came through at a pace."""
    with tempfile.TemporaryDirectory() as folder, pump(pace) as endpoint:
        with Gateway(Path(folder) / "g", endpoints={"pump": endpoint}, workers=workers) as gateway:
            time.sleep(1.0)
            serving = workers_of(gateway)
            rss = sum(p.memory_info().rss for p in serving)
            before = _cpu(serving)
            counts, took, client_s = readers.read(gateway.url, dialect, MODEL, streams, seconds)
            used = _cpu(serving) - before
        share = used / (took + 0.5)
        return {
            "offered_tokens_s": round(streams * pace),
            "tokens_s": round(counts.tokens / took),
            "events_s": round(counts.events / took),
            "gateway_cpu_us_event": round(used * 1e6 / max(1, counts.events), 2),
            "gateway_cores": round(share, 2),
            "client_cores": round(client_s / took, 2),
            "delay_ms_p50": round(quantile(counts.delays_ms, 0.5), 2),
            "delay_ms_p99": round(quantile(counts.delays_ms, 0.99), 2),
            "lost": counts.lost,
            "rss_mb": round(rss / 2**20),
        }


if __name__ == "__main__":
    for pace in map(float, sys.argv[3:]):
        print(pace, carry(sys.argv[1], int(sys.argv[2]), pace))
