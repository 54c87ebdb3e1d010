"""What a request's key and limits cost a gateway process, and what slow clients cost the others."""

import contextlib
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from cortex.access.access import Access
from cortex.access.keys import ApiKey, KeyRing, Limits, digest, spell
from cortex.access.meter import ROWS, Meter
from cortex.access.rows import Rows
from tests.bench.report import quantile
from tests.support.fake_neuron import MODEL, FakeNeuron
from tests.support.harness import Gateway

BATCHES, BATCH = 50, 200
PROCESSES = 4
SLOW = 2000
SLOW_ADDRESS = "127.0.0.2"
REQUESTS = 400
LINE = b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: " + b"x" * 5000


def measure_cost() -> dict[str, Any]:
    """Pass a request's headers through recognition, seats, windows and reservation; four processes count."""
    text = spell("a" * 8, "1" * 48)
    limits = Limits(concurrent=9, requests_per_minute=10**9, tokens_per_minute=10**9, tokens_per_day=10**9)
    key = ApiKey(id="a" * 8, hash=digest(text), row=3, created_at=0, limits=limits)
    ring, rows = KeyRing([key]), Rows(PROCESSES, ROWS)
    access = Access(ring=lambda: ring)
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"authorization", b"Bearer " + text.encode())]

    def one(meter: Meter) -> None:
        ticket = meter.admit(access.identify("/v1/chat/completions", headers, "10.0.0.1"))
        assert ticket is not None
        ticket.reserve(500)
        ticket.charge(20)
        ticket.close()

    meters = [Meter(rows, place) for place in range(PROCESSES)]
    for meter in meters:
        one(meter)
    readings = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        for _ in range(BATCH):
            one(meters[0])
        readings.append((time.perf_counter() - began) / BATCH * 1e6)
    rows.close()
    return {"least_us": round(min(readings), 1), "p50_us": round(quantile(readings, 0.5), 1)}


def measure_slow_clients() -> dict[str, Any]:
    """Ask as a good client, alone and beside 2,000 connections that send a header byte by byte."""
    limits = {"header_s": 300.0, "connections_per_address": 2 * SLOW}
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeNeuron() as neuron,
        Gateway(Path(folder), endpoints={"beast": neuron.endpoint}, workers=2, limits=limits) as gateway,
    ):
        quiet = _ask(gateway)
        is_over = threading.Event()
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(SLOW):
                client = stack.enter_context(socket.socket())
                client.bind((SLOW_ADDRESS, 0))
                client.connect(("127.0.0.1", gateway.port))
                clients.append(client)
            dripping = threading.Thread(target=_drip, args=(clients, is_over))
            dripping.start()
            beside = _ask(gateway)
            is_over.set()
            dripping.join()
    return {
        "quiet_p99_ms": round(quantile(quiet, 0.99), 2),
        "beside_slow_p99_ms": round(quantile(beside, 0.99), 2),
        "ratio_p99": round(quantile(beside, 0.99) / quantile(quiet, 0.99), 2),
        "ratio_p50": round(quantile(beside, 0.5) / quantile(quiet, 0.5), 2),
    }


def _ask(gateway: Gateway) -> list[float]:
    """Return milliseconds."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    taken = []
    with httpx.Client(timeout=30) as client:
        for _ in range(REQUESTS):
            began = time.perf_counter()
            client.post(f"{gateway.url}/v1/chat/completions", json=body).raise_for_status()
            taken.append((time.perf_counter() - began) * 1000)
    return taken


def _drip(clients: list[socket.socket], is_over: threading.Event) -> None:
    """Send a byte on each connection every two seconds."""
    for at in range(len(LINE)):
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(LINE[at : at + 1])
        if is_over.wait(2.0):
            return
