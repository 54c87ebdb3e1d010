"""First-byte latency through the whole chain with an instant fake engine: HTTP, gateway, bus, prep, worker and back."""

import http.client
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from tests.bench.report import spread
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron

REQUESTS = 1000
WARM_UP = 200


def measure() -> dict[str, Any]:
    """Return milliseconds from sending a streaming chat request to its first byte, one request at a time."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        models = [{"id": "instant", "source": f"file:{write_model(base / 'm.json', length=1)}", "vram_mb": 100}]
        with (
            Neuron(base / "n", devices=[{"kind": "cpu", "memory_mb": 1024, "threads": 1}], models=models,
                   engine="tests.support.fake_engine", preload=["instant"]) as neuron,
            Gateway(base / "g", neurons=[neuron], workers=1) as gateway,
        ):  # fmt: skip
            neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded")
            waits = _sample(gateway.url, WARM_UP + REQUESTS)[WARM_UP:]
    return {"requests": REQUESTS, "first_byte_ms": {k: round(v, 3) for k, v in spread(waits).items()}}


def _sample(url: str, count: int) -> list[float]:
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    body = orjson.dumps({"model": "instant", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    waits = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.read1(1)
        waits.append((time.perf_counter() - began) * 1000)
        assert response.status == 200
        assert first
        response.read()
    connection.close()
    return waits
