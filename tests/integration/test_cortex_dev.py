"""`cortex dev`: one command from nothing to an answer, and nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.harness import DEMO_MODEL, ROOT, free_port, wait_gone


@contextmanager
def dev(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Start it with its output in a file, as in a pipe, temporary files in a folder of their own, and a dead proxy."""
    out, temporary = folder / "out", Path(tempfile.mkdtemp(prefix="dev-test-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "NEURON_"))}
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "dev", *arguments],
            stdout=file, stderr=file, text=True, cwd=ROOT, start_new_session=True,
            env={**environment, "TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9"},
            # A shell that runs the tests in its background has SIGINT ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        yield process, out
    finally:
        was_killed = process.poll() in (None, -signal.SIGKILL)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = list(temporary.iterdir())
        shutil.rmtree(temporary)
    assert was_killed or left == []


def wait_until(out: Path, words: str, process: "subprocess.Popen[str]") -> str:
    deadline = time.monotonic() + 60
    while words not in (text := out.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_gets_ready_answers_the_line_it_prints_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with dev(tmp_path, "--port", str(port)) as (process, out):
        text = wait_until(out, "Ctrl-C stops everything", process)
        assert "loading smollm2-135m-instruct" in text
        assert "llama.cpp backend: CPU" in text
        line = re.search(r"curl -N (.*?\\\n.*?)\n\n", text, re.DOTALL)
        assert line is not None
        command = f"curl -sN {line[1]}".replace('"stream": true', '"stream": true, "max_tokens": 4')
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
        assert answer.stdout.rstrip().endswith("data: [DONE]")
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 5  # neuron, its worker and prep, the arbiter and a gateway process
        process.send_signal(number)
        assert process.wait(15) == 0
        assert wait_gone(family, 2.0) == []


def test_a_killed_dev_takes_its_daemons_along(tmp_path: Path) -> None:
    with dev(tmp_path, "--port", str(free_port())) as (process, out):
        wait_until(out, "Ctrl-C stops everything", process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert wait_gone(family, 10.0) == []


def test_a_model_of_ones_own_is_served_under_its_files_name(tmp_path: Path) -> None:
    (tmp_path / "my model.Q4.gguf").symlink_to(DEMO_MODEL)
    port = free_port()
    with dev(tmp_path, "--model", str(tmp_path / "my model.Q4.gguf"), "--port", str(port)) as (process, out):
        wait_until(out, "Ctrl-C stops everything", process)
        ids = [m["id"] for m in httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]]
        assert "my-model.q4" in ids
        process.terminate()
        assert process.wait(15) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere/m.gguf"], "no such file"),
        (["--port", "0"], "is no TCP port"),
        (["--model", "README.md"], "no GGUF file"),
    ],
)
def test_what_cannot_work_ends_with_the_reason(tmp_path: Path, arguments: list[str], words: str) -> None:
    if "--port" not in arguments:
        arguments = [*arguments, "--port", str(free_port())]
    with dev(tmp_path, *arguments) as (process, out):
        assert process.wait(60) == 1
        assert words in out.read_text()
