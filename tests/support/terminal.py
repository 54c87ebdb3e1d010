"""Runs a program on a terminal of its own, as a person would see it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

from tests.support.harness import ROOT

ROWS, COLUMNS = 24, 120


class Terminal:
    """A Python program whose output is a terminal. Use as a context manager."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """`arguments`: of python, for example `-m cortex status`; `environment`: beside this process's own."""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env={**own, "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        """All that was written so far, control sequences included."""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        """Return once this was shown; fail if it never is."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert self._read(deadline), f"never shown: {text!r}; but: {self.shown!r}"

    def end(self, timeout_s: float = 20.0) -> int:
        """Read until the program ends; return its exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self._process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Take what comes next; False at the end of the program, or of the time."""
        if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # nobody has the other side open any more
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)
