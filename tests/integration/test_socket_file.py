"""Whoever administers a host needs no key on it: the kernel says who comes by the socket file."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.endpoint import SocketFile
from common.errors import Code
from common.messages import Abort, NodeState, Refused
from tests.support.bus_keys import run
from tests.support.bus_peer import BusPeer, hello
from tests.support.fake_engine import write_model
from tests.support.harness import Neuron

NOBODY = 65534
# Becomes somebody else once it has what it needs, and says what it is told there.
VISIT = """
import os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(g) for g in sys.argv[4:]]
visitor = socket.socket(socket.AF_UNIX)
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
visitor.settimeout(10)
try:
    visitor.connect(path)
    print("answered" if visitor.recv(1) else "hung up")
except PermissionError:
    print("denied")
except ConnectionResetError:
    print("hung up")
"""


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neuron]:
    folder = tmp_path_factory.mktemp("socket")
    # pytest's own folders are closed to everybody else.
    open_folder = Path(tempfile.mkdtemp(prefix="neuron-"))
    open_folder.chmod(0o755)
    source = f"file:{write_model(folder / 'm.json', token_s=0.0)}"
    models = [{"id": "m", "source": source, "vram_mb": 200, "context": 2000}]
    try:
        with Neuron(
            folder / "n", models=models, engine="tests.support.fake_engine", security="curve",
            socket_file=str(open_folder / "neuron.sock"),
        ) as started:  # fmt: skip
            yield started
    finally:
        shutil.rmtree(open_folder)


def socket_of(neuron: Neuron) -> Path:
    line = next(s for s in (neuron.folder / "neuron.yaml").read_text().splitlines() if s.startswith("socket_file: "))
    return Path(line.split(": ")[1])


def ctl(neuron: Neuron, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run("neuron.ctl", "--endpoint", f"ipc://{socket_of(neuron)}", *arguments)


def test_neuronctl_administers_without_a_key_beside_those_who_have_one(neuron: Neuron) -> None:
    assert ctl(neuron, "load", "m").returncode == 0
    status = ctl(neuron, "status")
    assert status.returncode == 0, status.stderr
    assert "beast: serving" in status.stdout
    assert neuron.status()["state"]["models"][0]["status"] == "loaded"
    assert neuron.ctl("--timeout", "0.5", "status").returncode == 3  # in plain text at the port nothing answers


def test_it_is_an_admins_way_and_no_gateways(neuron: Neuron) -> None:
    with BusPeer(SocketFile(str(socket_of(neuron)))) as peer:
        peer.send(hello(peer.incarnation, "gateway"))
        posing = peer.receive()
        assert isinstance(posing, Refused)
        assert posing.code is Code.PERMISSION_DENIED
        peer.send(hello(peer.incarnation))
        assert isinstance(peer.receive(), NodeState)
        peer.send(Abort(jobs=[]))
        assert isinstance(peer.receive(), Refused)


def test_the_file_is_for_the_service_and_its_group(neuron: Neuron) -> None:
    assert stat.S_IMODE(socket_of(neuron).stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "mode", "told"),
    [
        (0, NOBODY, [], 0o660, "answered"),  # root, in whatever group
        (NOBODY, os.getegid(), [], 0o660, "answered"),  # the service's group
        (NOBODY, NOBODY, [], 0o660, "denied"),
        (NOBODY, NOBODY, [], 0o666, "hung up"),  # also where the file's mode would let anybody in
        (NOBODY, NOBODY, [os.getegid()], 0o666, "hung up"),
    ],
)
def test_the_kernel_says_who_comes(neuron: Neuron, uid: int, gid: int, groups: list[int], mode: int, told: str) -> None:
    path = socket_of(neuron)
    path.chmod(mode)
    try:
        numbers = map(str, (uid, gid, *groups))
        done = subprocess.run(
            [sys.executable, "-c", VISIT, str(path), *numbers], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        path.chmod(0o660)
    assert done.stdout.strip() == told


def test_a_path_that_is_too_long_is_said(tmp_path: Path) -> None:
    path = tmp_path / "neuron.yaml"
    path.write_text(f"socket_file: {tmp_path / ('x' * 120)}\ndevices: [{{kind: cpu, memory_mb: 500}}]\n")
    started = run("neuron", "--config", str(path))
    assert started.returncode == 1
    assert "socket_file" in started.stderr
