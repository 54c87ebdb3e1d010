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

from neuron.process.last_words import LastWords

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    process: "subprocess.Popen[bytes]"
    pidfd: int
    lifeline: int
    """Write end; nothing is ever written, its closing ends the child."""
    name: str
    stderr: int
    """Read end."""


class Children:
    """The processes that are alive, by incarnation.

    Spawned by fork and exec from the loop's thread, which lives as long as the daemon (PDEATHSIG follows the thread).
    Watched by pidfd: uvloop refuses a SIGCHLD handler, and a pidfd cannot be confused with a recycled pid.
    """

    def __init__(self, exited: Callable[[str, str, bool], None]) -> None:
        """`exited(incarnation, cause, by_signal)`."""
        self._loop = asyncio.get_running_loop()
        self._exited = exited
        self.last_words = LastWords()
        self._running: dict[str, _Running] = {}

    def spawn(
        self, incarnation: str, module: str, name: str, arguments: list[str], environment: dict[str, str]
    ) -> tuple[int, socket.socket]:
        """Start `python -m module`, its own process group; return its pid and our end of its line. Raises OSError.

        The module stays in the command line, so that `ps` tells what a process is. What it writes to stderr is kept
        under `name`.
        """
        hold, lifeline = os.pipe()
        words, stderr = os.pipe()
        ours, theirs = socket.socketpair()
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
                pass_fds=(hold, theirs.fileno()),
                start_new_session=True,
            )
        except OSError:
            os.close(lifeline)
            os.close(words)
            ours.close()
            raise
        finally:
            os.close(hold)
            os.close(stderr)
            theirs.close()
        running = _Running(process, os.pidfd_open(process.pid), lifeline, name, words)
        self.last_words.listen(name, words)
        self._running[incarnation] = running
        self._loop.add_reader(running.pidfd, self._reap, incarnation)
        return process.pid, ours

    def kill(self, incarnation: str, *, hard: bool) -> None:
        """Send SIGTERM to a child, or SIGKILL to its whole group; nothing happens if it is gone."""
        running = self._running.get(incarnation)
        if running is None:
            return
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
        if status < 0:
            self._exited(incarnation, f"signal {signal.Signals(-status).name}", True)
        else:
            self._exited(incarnation, f"status {status}", False)
