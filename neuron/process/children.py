"""Starting, watching and killing the supervisor's children: the only place with fork, kill and waitpid."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neuron.process import breadcrumb
from neuron.process.breadcrumb import Trace
from neuron.process.last_words import LastWords
from neuron.process.lifeline import NO_ENGINE

log = logging.getLogger(__name__)

_FROM_OUTSIDE = {0, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""What no defect of a program does to it: these signals, and the orderly exit that follows a SIGTERM."""
_STANDING_STILL = "Tt"


@dataclass(slots=True)
class _Running:
    process: "subprocess.Popen[bytes]"
    pidfd: int
    lifeline: int
    """Write end; nothing is ever written, its closing ends the child."""
    name: str
    stderr: int
    """Read end."""
    breadcrumb: int | None = None
    """Where a worker leaves what it computes."""
    is_ended_here: bool = False
    """Whether it was sent a signal to end it."""
    was_stopped: bool = False
    """Whether it stood still (SIGSTOP, a debugger) when it was sent that signal."""


class Exit(NamedTuple):
    """How a child ended."""

    cause: str
    """In words: `signal SIGKILL`, `status 3`."""
    is_outside: bool = False
    """Somebody else than this program has ended it, or had stopped it."""
    trace: Trace = Trace()
    lacks_engine: bool = False
    """What is installed is to blame, not the device."""


class Children:
    """The processes that are alive, by incarnation.

    Spawned by fork and exec from the loop's thread, which lives as long as the daemon (PDEATHSIG follows the thread).
    Watched by pidfd: uvloop refuses a SIGCHLD handler, and a pidfd cannot be confused with a recycled pid.
    """

    def __init__(self, exited: Callable[[str, Exit], None]) -> None:
        """`exited(incarnation, how)`."""
        self._loop = asyncio.get_running_loop()
        self._exited = exited
        self.last_words = LastWords()
        self._running: dict[str, _Running] = {}

    def spawn(
        self,
        incarnation: str,
        module: str,
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        *,
        leaves_trace: bool = False,
    ) -> tuple[int, socket.socket]:
        """Start `python -m module`, its own process group; return its pid and our end of its line. Raises OSError.

        The module stays in the command line, so that `ps` tells what a process is. What it writes to stderr is kept
        under `name`.
        """
        hold, lifeline = os.pipe()
        words, stderr = os.pipe()
        ours, theirs = socket.socketpair()
        crumb = breadcrumb.create() if leaves_trace else None
        if crumb is not None:
            arguments = ["--breadcrumb", str(crumb), *arguments]
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module,
                    "--lifeline",
                    str(hold),
                    "--line",
                    str(theirs.fileno()),
                    "--supervisor-pid",
                    str(os.getpid()),
                    *arguments,
                ],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(hold, theirs.fileno(), *(() if crumb is None else (crumb,))),
                start_new_session=True,
            )
        except OSError:
            os.close(lifeline)
            os.close(words)
            ours.close()
            if crumb is not None:
                os.close(crumb)
            raise
        finally:
            os.close(hold)
            os.close(stderr)
            theirs.close()
        running = _Running(process, os.pidfd_open(process.pid), lifeline, name, words, crumb)
        self.last_words.listen(name, words)
        self._running[incarnation] = running
        self._loop.add_reader(running.pidfd, self._reap, incarnation)
        return process.pid, ours

    def kill(self, incarnation: str, *, hard: bool) -> None:
        """Send SIGTERM to a child, or SIGKILL to its whole group; nothing happens if it is gone."""
        running = self._running.get(incarnation)
        if running is None:
            return
        running.is_ended_here = True
        running.was_stopped |= process_state(running.process.pid) in _STANDING_STILL
        if hard:
            os.killpg(running.process.pid, signal.SIGKILL)
        else:
            running.process.terminate()

    def _reap(self, incarnation: str) -> None:
        running = self._running.pop(incarnation)
        self._loop.remove_reader(running.pidfd)
        with contextlib.suppress(ProcessLookupError):
            # Grandchildren must not keep the device or a pipe. Until the wait the group's id is not reused.
            os.killpg(running.process.pid, signal.SIGKILL)
        status = running.process.wait()
        os.close(running.pidfd)
        os.close(running.lifeline)
        self.last_words.close(running.name, running.stderr)
        trace = Trace()
        if running.breadcrumb is not None:
            trace = breadcrumb.read(running.breadcrumb)
            os.close(running.breadcrumb)
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if running.was_stopped:
            cause += ", after somebody had stopped it"
        is_outside = running.was_stopped or (not running.is_ended_here and -status in _FROM_OUTSIDE)
        lacks_engine = status == NO_ENGINE
        if lacks_engine:
            cause += f", its engine cannot be loaded; neuronctl logs {running.name} says why"
        self._exited(incarnation, Exit(cause, is_outside, trace, lacks_engine))


def process_state(pid: int) -> str:
    """Return the letter of a process's state as ps shows it; empty for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
