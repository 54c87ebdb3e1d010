"""`cortex dev` with the demo model: seconds from the command to its ready line, and to the first byte of an answer."""

import statistics
import subprocess
import sys
import time
from typing import Any

import httpx

from tests.support.harness import ROOT, free_port

ROUNDS = 5
READY = "Ctrl-C stops everything"


def measure() -> dict[str, Any]:
    """Start it several times; the first does not count, since it reads the model file from the disk."""
    starts = [_start() for _ in range(ROUNDS + 1)][1:]
    return {
        "rounds": ROUNDS,
        "ready_s": round(statistics.median(ready for ready, _ in starts), 2),
        "ready_s_worst": round(max(ready for ready, _ in starts), 2),
        "first_byte_s": round(statistics.median(first for _, first in starts), 2),
    }


def _start() -> tuple[float, float]:
    port, began = free_port(), time.monotonic()
    command = [sys.executable, "-m", "cortex", "dev", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if READY in line:
                    break
            else:
                raise RuntimeError("cortex dev ended before it was ready")
            ready_s = time.monotonic() - began
            body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                assert response.status_code == 200
                next(response.iter_raw())
                first_s = time.monotonic() - began
        finally:
            process.terminate()
            process.communicate(timeout=30)
    return ready_s, first_s
