"""What only a terminal shows: an order's progress bar, drawn while the neuron works and gone when it is done."""

import contextlib
import os
import pty
import queue
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import HTTPServer
from typing import Any

import orjson
import pytest

from tests.support.harness import ROOT
from tests.support.scripted_server import QuietHandler, serving

PATIENCE_S = 20.0


class Script(HTTPServer):
    """Answers an order line by line, each when it is put into `lines`; None ends the answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def say(self, **step: Any) -> None:
        """Send what a neuron says next."""
        self.lines.put(orjson.dumps({"node": "beast", **step}) + b"\n")


class Handler(QuietHandler):
    """One order."""

    server: Script

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        while (line := self.server.lines.get(timeout=PATIENCE_S)) is not None:
            self.wfile.write(line)
            self.wfile.flush()


@pytest.fixture
def gateway() -> Iterator[Script]:
    with serving(Script()) as server:
        yield server


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
        environment |= {"TERM": "xterm", "PYTHONPATH": str(ROOT), "CORTEX_ADMIN_KEY": "a-key-of-some-length"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.text = ""

    def read_until(self, is_there: Callable[[str], Any]) -> None:
        """Read what the program writes until something is there."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_there(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                self.text += self._read()

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode()
        except OSError:  # how Linux says that the other side is closed
            return ""

    def end(self) -> int:
        """Read the rest and return the exit status."""
        status = self.process.wait(PATIENCE_S)
        while part := self._read():
            self.text += part
        return status

    def close(self) -> None:
        """Give the terminal back."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def screen(text: str) -> list[str]:
    """Return the lines that stay when all has been written, of a program that only redraws its last line."""
    lines = [""]
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            lines.append("")
        elif part in ("\x1b[2K", "\x1b[K"):
            lines[-1] = ""
        elif part == "\x1b[1A":
            lines.pop()
        elif part and not part.startswith("\x1b") and part != "\r":
            lines[-1] += part
    return [line for line in lines if line.strip()]


def test_a_load_draws_its_progress_and_leaves_its_last_word(gateway: Script) -> None:
    terminal = Terminal(sys.executable, "-m", "cortex", "load", "big", "--url", gateway.url)
    with contextlib.closing(terminal):
        gateway.say(state="progress", text="loading big", fraction=0.25)
        terminal.read_until(lambda text: "25%" in text)
        gateway.say(state="progress", text="loading big", fraction=0.75)
        terminal.read_until(lambda text: "75%" in text)
        assert "beast: loading big" in terminal.text
        assert "━" in terminal.text
        gateway.say(state="done", text="big is loaded on GPU-0 in 9.1 s")
        gateway.lines.put(None)
        assert terminal.end() == 0
        assert screen(terminal.text) == ["beast: big is loaded on GPU-0 in 9.1 s"]


def test_without_a_terminal_there_is_no_bar(gateway: Script) -> None:
    gateway.say(state="progress", text="loading big", fraction=0.25)
    gateway.say(state="done", text="big is loaded")
    gateway.lines.put(None)
    command = [sys.executable, "-m", "cortex", "load", "big", "--url", gateway.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CORTEX_ADMIN_KEY": "a-key-of-some-length"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "beast: big is loaded\n", "")
