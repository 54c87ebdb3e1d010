"""What the gateway can carry, beside others that do its work: events and requests a second, delays, CPU and memory.

Each side gets tokens from a source that is never the limit: ours from a neuron (tests.bench.pump) over the bus, nginx
and LiteLLM from an HTTP server that streams the same chunks (tests.bench.sse_stub), the bare ASGI application from a
timer of its own. One process serves on each side unless said otherwise; the sides take turns.
"""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.bench import readers
from tests.bench.pump import MODEL
from tests.bench.report import quantile
from tests.support.harness import ROOT, Gateway, free_port

LITELLM = Path("build/litellm/bin/litellm")
"""Installed by `make bench-gateway` into an environment of its own."""
STREAMS = 100
PACES = (25, 50, 100, 200, 300, 400, 500, 600, 800, 1000, 1250, 1500)
"""Tokens a second of each stream, until a side does not keep up."""
ROUNDS = 3
SLOTS = 16
"""Of each engine where delays are measured: a hundred streams that all tick at once wait for each other first."""


@dataclass
class Side:
    """A running gateway."""

    url: str
    serving: list[psutil.Process]
    """The processes that carry the bytes."""

    def cpu_s(self) -> float:
        """Return the CPU seconds they have used."""
        return sum(sum(p.cpu_times()[:2]) for p in self.serving)

    def rss(self) -> int:
        """Return their memory in bytes."""
        return sum(p.memory_info().rss for p in self.serving)


@contextlib.contextmanager
def _process(*command: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        command, env={**os.environ, **environment}, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def _wait_for(port: int, limit_s: float = 120) -> None:
    ends_at = time.monotonic() + limit_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > ends_at:
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.05)


@contextlib.contextmanager
def ours(pace: float, slots: int = 0, workers: int = 1) -> Iterator[Side]:
    """Run `cortex serve` before a neuron that pushes."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        _process(sys.executable, "-m", "tests.bench.pump", str(port), str(pace), str(slots)),
        Gateway(Path(folder), endpoints={"pump": f"tcp://127.0.0.1:{port}"}, workers=workers) as gateway,
    ):
        ends_at = time.monotonic() + 20
        while gateway.log.count(" answers ") < workers:
            if time.monotonic() > ends_at:
                raise RuntimeError(gateway.log)
            time.sleep(0.02)
        children = psutil.Process(gateway.process.pid).children(recursive=True)
        yield Side(gateway.url, [p for p in children if not p.children()])


@contextlib.contextmanager
def _stub(pace: float, slots: int) -> Iterator[str]:
    port = free_port()
    with _process(sys.executable, "-m", "tests.bench.sse_stub", str(port), str(pace), str(slots)):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def nginx(pace: float, slots: int = 0) -> Iterator[Side]:
    """Run nginx before the stub, which is the limit of what relaying can be."""
    port, program = free_port(), shutil.which("nginx")
    assert program is not None, "nginx is missing (Debian: apt install nginx-light)"
    with tempfile.TemporaryDirectory() as folder, _stub(pace, slots) as upstream:
        config = Path(folder) / "nginx.conf"
        temp = " ".join(f"{k}_temp_path {folder}/{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config.write_text(f"""
            daemon off; worker_processes 1; worker_rlimit_nofile 20000;
            pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 10000; }}
            http {{ access_log off; keepalive_requests 10000000; {temp}
                upstream stub {{ server {upstream.removeprefix("http://")}; keepalive 64; }}
                server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
                    proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            }} }} }}
        """)
        with _process(program, "-c", str(config), "-p", folder, "-e", f"{folder}/error.log") as master:
            _wait_for(port)
            yield Side(f"http://127.0.0.1:{port}", psutil.Process(master.pid).children())


@contextlib.contextmanager
def litellm(pace: float, slots: int = 0) -> Iterator[Side]:
    """Run LiteLLM's proxy before the stub."""
    assert LITELLM.exists(), "LiteLLM is missing; `make bench-gateway` installs it"
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, _stub(pace, slots) as upstream:
        config = Path(folder) / "config.yaml"
        config.write_text(f"""
model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: {upstream}/v1, api_key: none}}
litellm_settings: {{telemetry: false}}
""")
        command = (str(LITELLM.absolute()), "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
        settings = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the internet
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOG": "ERROR",
        }
        with _process(*command, **settings) as process:
            _wait_for(port)
            yield Side(f"http://127.0.0.1:{port}", [psutil.Process(process.pid)])


@contextlib.contextmanager
def bare(pace: float, _slots: int = 0) -> Iterator[Side]:
    """Run the bare ASGI application under gunicorn."""
    port = free_port()
    command = ("gunicorn", "-k", "asgi", "--asgi-loop", "uvloop", "-w", "1", "-b", f"127.0.0.1:{port}")
    with _process(sys.executable, "-m", *command, "tests.bench.echo_app:app", PACE=str(pace or 10)) as master:
        _wait_for(port)
        time.sleep(0.5)
        yield Side(f"http://127.0.0.1:{port}", psutil.Process(master.pid).children())


Start = Callable[[float, int], contextlib.AbstractContextManager[Side]]
"""With tokens a second of each stream, and the slots of the engines that they come from; 0: one engine for all."""


def carry(
    start: Start, dialect: str, streams: int, pace: float, *, slots: int = 0, seconds: float = 3.0
) -> dict[str, Any]:
    """Return what comes through at a pace."""
    with start(pace, slots) as side:
        idle = side.rss()
        meter = readers.Meter(side.cpu_s, side.rss)
        counts, took, client_s = readers.read(side.url, dialect, MODEL, streams, seconds, meter)
    return {
        "offered_tokens_s": round(streams * pace),
        "tokens_s": round(counts.tokens / took),
        "events_s": round(counts.events / took),
        "cpu_us_event": round(meter.cpu_s * 1e6 / max(1, counts.events), 2),
        "cores": round(meter.cpu_s / took, 2),
        "reader_cores": round(client_s / took, 2),
        "delay_ms_p50": round(quantile(counts.delays_ms, 0.5), 2),
        "delay_ms_p99": round(quantile(counts.delays_ms, 0.99), 2),
        "added_gap_ms_p99": round(quantile(counts.added_gaps_ms, 0.99), 2),
        "kib_stream": round((meter.rss - idle) / 1024 / streams, 1),
        "lost": counts.lost,
    }


def keeps_up(row: dict[str, Any]) -> bool:
    """Say whether every token came, in an event of its own."""
    return bool(row["tokens_s"] > 0.95 * row["offered_tokens_s"] and row["events_s"] > 0.95 * row["tokens_s"])


def capacity(start: Start, dialect: str) -> dict[str, Any]:
    """Return the row of the highest pace that a side keeps up with, and the most events that it carried at any."""
    best: dict[str, Any] = {}
    most = 0
    for pace in PACES:
        row = carry(start, dialect, STREAMS, pace)
        most = max(most, row["events_s"])
        if keeps_up(row):
            best = row
        elif best:
            break
    return {**best, "most_events_s": most}


def first_bytes(start: Start, count: int = 500) -> list[float]:
    """Return milliseconds from a streaming request to its first byte, one request at a time."""
    with start(0.0, 0) as side:
        return readers.first_bytes(side.url, MODEL, count + 100)[100:]


def requests_s(start: Start, seconds: float = 3.0) -> float:
    """Return answers a second that are not streamed, over 16 connections."""
    with start(0.0, 0) as side:
        return readers.requests_s(side.url, MODEL, 16, seconds)


def measure() -> dict[str, Any]:
    """Return the table of all sides. LiteLLM and nginx take part if they are installed."""
    sides: dict[str, Start] = {"ours": ours, "bare_asgi": bare}
    if shutil.which("nginx"):
        sides["nginx"] = nginx
    if LITELLM.exists():
        sides["litellm"] = litellm
    figures: dict[str, Any] = {}
    events: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    firsts: dict[str, list[list[float]]] = {name: [] for name in sides if name != "bare_asgi"}
    answers: dict[str, list[float]] = {name: [] for name in firsts}
    for _ in range(ROUNDS):
        for name, start in sides.items():
            events[name].append(capacity(start, "openai"))
            if name in firsts:
                firsts[name].append(first_bytes(start))
                answers[name].append(requests_s(start))
        events.setdefault("ours_anthropic", []).append(capacity(ours, "anthropic"))
    for name, rows in events.items():
        figures[f"{name} events/s"] = sorted(rows, key=lambda r: r.get("events_s", 0))[len(rows) // 2]
    for name, rounds in firsts.items():
        p50 = statistics.median(statistics.median(r) for r in rounds)
        p99 = statistics.median(quantile(r, 0.99) for r in rounds)
        figures[f"{name} first byte ms"] = {"p50": round(p50, 3), "p99": round(p99, 3)}
        figures[f"{name} requests/s"] = round(statistics.median(answers[name]))
    for streams, pace, slots in ((1, 50, SLOTS), (10, 50, SLOTS), (100, 50, SLOTS), (100, 50, 0), (1000, 10, SLOTS)):
        for name in sides.keys() & {"ours", "nginx"}:
            row = carry(sides[name], "openai", streams, pace, slots=slots, seconds=5)
            figures[f"{name} {streams} × {pace}/s{'' if slots else ', in step'}"] = row
    for slots in (SLOTS, 0):
        row = carry(partial(ours, workers=2), "openai", 2000, 10, slots=slots, seconds=10)
        figures[f"ours 2000 × 10/s, two processes{'' if slots else ', in step'}"] = row
    return figures
