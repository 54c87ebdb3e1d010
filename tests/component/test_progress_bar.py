"""How far a load is: shown on a terminal while it lasts, gone afterwards, and never in the output of a program."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import orjson
import pytest

from common.messages import Done, FromNeuron, Load, Progress, ToNeuron
from tests.component.test_neuronctl import Script
from tests.support.harness import ROOT
from tests.support.terminal import Terminal

PATIENCE_S = 20.0
HALFWAY = "loading m on CPU-0"
ERASED = "\x1b[2K"
"""The control sequence that clears a line."""


class Slow(HTTPServer):
    """A gateway whose load is at 40 % until `seen` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One order."""

    server: Slow

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        for step in ({"state": "progress", "text": HALFWAY, "fraction": 0.4}, {"state": "done", "text": "m is loaded"}):
            self.wfile.write(orjson.dumps({"node": "a", **step}) + b"\n")
            self.wfile.flush()
            assert self.server.seen.wait(PATIENCE_S)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[Slow]:
    with Slow() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.seen.set()
        server.shutdown()
        thread.join()


def test_cortex_load_shows_a_bar_on_a_terminal_until_it_is_done(gateway: Slow) -> None:
    with Terminal(["-m", "cortex", "load", "m", "--url", gateway.url], {}) as terminal:
        terminal.wait_for(f"a: {HALFWAY}")
        terminal.wait_for("40%")
        assert "is loaded" not in terminal.shown
        gateway.seen.set()
        assert terminal.end() == 0
    bar, _, words = terminal.shown.rpartition(ERASED)
    assert "40%" in bar
    assert words.strip() == "a: m is loaded"


def test_cortex_load_shows_no_bar_to_a_program(gateway: Slow) -> None:
    gateway.seen.set()
    command = [sys.executable, "-m", "cortex", "load", "m", "--url", gateway.url]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=ROOT)
    assert (told.returncode, told.stdout, told.stderr) == (0, "a: m is loaded\n", "")


def test_neuronctl_load_shows_a_bar_on_a_terminal_until_it_is_done() -> None:
    script, seen = Script(), threading.Event()

    def answer(message: ToNeuron) -> Iterator[FromNeuron]:
        if isinstance(message, Load):
            yield Progress(request=message.request, text=HALFWAY, fraction=0.4)
            assert seen.wait(PATIENCE_S)
            yield Done(request=message.request, text="m is loaded")

    script.answer = answer
    try:
        with Terminal(["-m", "neuron.ctl", "load", "m"], {"NEURON_ENDPOINT": script.endpoint}) as terminal:
            terminal.wait_for(HALFWAY)
            terminal.wait_for("40%")
            seen.set()
            assert terminal.end() == 0
    finally:
        seen.set()
        script.close()
    bar, _, words = terminal.shown.rpartition(ERASED)
    assert "40%" in bar
    assert words.strip() == "m is loaded"
