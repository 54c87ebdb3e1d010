"""A machine of its own: a Debian root booted by a real systemd in a container, with a dnf repository inside."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIRROR = "HELEXA_DEBIAN_MIRROR"
"""Environment variable: where debootstrap gets its packages; unset, where it does by itself."""
NEEDED = ("curl", "dbus", "dnf", "libgomp1", "libstdc++6", "procps", "python3", "systemd", "systemd-sysv")


class Machine:
    """The booted root; commands run inside of it."""

    def __init__(self, root: Path, process: "subprocess.Popen[bytes]", leader: int) -> None:
        self.root = root
        self._process = process
        self._leader = leader

    def command(self, *words: str) -> list[str]:
        """Return what runs these words inside."""
        inside = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return ["nsenter", "--all", "--target", str(self._leader), "--wd=/", *inside, *words]

    def run(self, *words: str, timeout_s: float = 120.0) -> str:
        """Run to the end; return what it printed. Fails the test unless the status is 0."""
        done = self.attempt(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.journal()}"
        return done.stdout

    def attempt(self, *words: str, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Run to the end, whatever it comes to."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout_s, check=False)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Run beside the test."""
        return subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self) -> str:
        """Return the latest lines of both services."""
        words = ("journalctl", "--no-pager", "--lines=60", "--unit=cortex", "--unit=neuron")
        return self.attempt(*words).stdout

    def wait(self, is_true: Callable[[], object], what: str, timeout_s: float = 90.0) -> None:
        """Wait for a condition."""
        ends_at = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < ends_at, f"not within {timeout_s} s: {what}\n{self.journal()}"
            time.sleep(0.2)

    def power_off(self) -> None:
        """End it."""
        self.attempt("systemctl", "poweroff")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)


def make_base(base: Path) -> None:
    """Make a minimal Debian 12, once."""
    if (base / "usr/bin/dnf").exists():
        return
    shutil.rmtree(base, ignore_errors=True)
    base.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(NEEDED)}", "bookworm", str(base)]
    command += [os.environ[MIRROR]] if MIRROR in os.environ else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1200)


@contextlib.contextmanager
def booted(root: Path, log_file: Path) -> Iterator[Machine]:
    """Boot a root; nothing of it is on the outer network."""
    command = [
        "systemd-nspawn",
        "--quiet",
        "--keep-unit",
        "--register=no",
        "--private-network",
        "--boot",
        "-D",
        str(root),
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        leader = _leader(process)
        machine = Machine(root, process, leader)
        machine.wait(
            lambda: machine.attempt("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"),
            "the machine is up",
        )
        yield machine
        machine.power_off()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _leader(process: "subprocess.Popen[bytes]") -> int:
    ends_at = time.monotonic() + 30
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < ends_at:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        assert process.poll() is None, "systemd-nspawn has ended"
        time.sleep(0.1)
    raise AssertionError("no systemd came up in the container")
