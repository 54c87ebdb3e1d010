"""Both real programs under a service manager: readiness, signs of life, reload, end, and the kept listener."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fake_neuron import FakeNeuron
from tests.support.harness import Gateway, Neuron, free_port
from tests.support.service_manager import FakeServiceManager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServiceManager]:
    with FakeServiceManager(tmp_path) as outside:
        monkeypatch.setenv("NOTIFY_SOCKET", outside.address)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        yield outside


def oom_score(process: psutil.Process | Neuron) -> int:
    return int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())


def wait_until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 20.0
    while not is_true():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.02)


def is_ready(datagram: dict[str, str]) -> bool:
    return datagram.get("READY") == "1"


def test_a_gateway_is_ready_when_it_has_heard_from_its_neurons(manager: FakeServiceManager, tmp_path: Path) -> None:
    with FakeNeuron() as neuron, Gateway(tmp_path / "g", endpoints={"beast": neuron.endpoint}) as gateway:
        ready = manager.wait_for(is_ready)
        assert ready["STATUS"].endswith("1 of 1 neurons answer")
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        manager.wait_for(lambda d: "WATCHDOG" in d)
        gateway.process.send_signal(signal.SIGHUP)
        manager.wait_for(lambda d: "RELOADING" in d and "MONOTONIC_USEC" in d)
        manager.wait_for(is_ready)
    stopping = manager.wait_for(lambda d: d.get("STOPPING") == "1")
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 2_000_000


def test_a_gateway_without_its_neurons_is_ready_all_the_same_and_says_so(
    manager: FakeServiceManager, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "g", endpoints={"gone": f"tcp://127.0.0.1:{free_port()}"}):
        assert manager.wait_for(is_ready)["STATUS"].endswith("0 of 1 neurons answer")


def test_a_connection_that_comes_while_a_gateway_restarts_is_served_by_the_next(
    manager: FakeServiceManager, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "g") as gateway:
        manager.wait_for(is_ready)
    kept = manager.kept["api"]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as early:
        early.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with next_life(gateway, kept) as process:
            try:
                assert early.recv(4096).startswith(b"HTTP/1.1 200")
            finally:
                process.terminate()
            assert process.wait(20) == 0


def test_a_listener_for_an_address_that_has_changed_since_makes_way(
    manager: FakeServiceManager, tmp_path: Path
) -> None:
    with Gateway(tmp_path / "g") as gateway:
        manager.wait_for(is_ready)
    file = gateway.folder / "cortex.yaml"
    file.write_text(file.read_text().replace("127.0.0.1:", "0.0.0.0:"))
    with next_life(gateway, manager.kept["api"]) as process:
        try:
            assert "0.0.0.0" in manager.wait_for(is_ready)["STATUS"]
            assert any("FDSTOREREMOVE" in d for d in manager.heard)
            assert httpx.get(f"{gateway.url}/livez").status_code == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


def next_life(gateway: Gateway, kept: int) -> "subprocess.Popen[bytes]":
    """Start the gateway as systemd does: the kept socket is descriptor 3."""
    script = f"exec 3<&{kept}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api exec {sys.executable} -m cortex serve"
    command = ["bash", "-c", f"{script} --config {gateway.folder}/cortex.yaml"]
    with gateway.log_file.open("ab") as log:
        return subprocess.Popen(command, pass_fds=[kept], stdout=log, stderr=log)


def test_a_neuron_is_ready_at_once_names_what_serves_and_outlives_its_children(
    manager: FakeServiceManager, tmp_path: Path
) -> None:
    with Neuron(tmp_path / "n", engine="tests.support.fake_engine") as neuron:
        assert "of 1 devices serve" in manager.wait_for(is_ready)["STATUS"]
        manager.wait_for(lambda d: "WATCHDOG" in d)
        manager.wait_for(lambda d: "1 of 1 devices serve; 0 models loaded" in d.get("STATUS", ""))
        neuron.process.send_signal(signal.SIGHUP)
        manager.wait_for(lambda d: "RELOADING" in d and "MONOTONIC_USEC" in d)
        manager.wait_for(is_ready)
        assert not [p for p in psutil.Process(neuron.pid).children() if "NOTIFY_SOCKET" in p.environ()]
        wait_until(lambda: all(oom_score(p) >= 500 > oom_score(neuron) for p in psutil.Process(neuron.pid).children()))
    manager.wait_for(lambda d: d.get("STOPPING") == "1")


def test_a_neuron_whose_loop_stands_still_gives_no_sign_of_life(manager: FakeServiceManager, tmp_path: Path) -> None:
    with Neuron(tmp_path / "n", engine="tests.support.fake_engine") as neuron:
        manager.wait_for(lambda d: "WATCHDOG" in d)
        os.kill(neuron.pid, signal.SIGSTOP)
        try:
            manager.hear(0.5)  # what was sent before
            assert manager.hear(2.0) == []
        finally:
            os.kill(neuron.pid, signal.SIGCONT)
        manager.wait_for(lambda d: "WATCHDOG" in d)
