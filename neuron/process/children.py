"""Starting, watching and killing the supervisor's children: the only place with fork, kill and waitpid."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    process: "subprocess.Popen[bytes]"
    pidfd: int
    lifeline: int
    """Write end; nothing is ever written, its closing ends the child."""
    output: int | None


class Children:
    """The processes that are alive, by incarnation.

    Spawned by fork and exec from the loop's thread, which lives as long as the daemon (PDEATHSIG follows the thread).
    Watched by pidfd: uvloop refuses a SIGCHLD handler, and a pidfd cannot be confused with a recycled pid.
    """

    def __init__(self, exited: Callable[[str, str, bool], None], said: Callable[[str, bytes], None]) -> None:
        """`exited(incarnation, cause, by_signal)`; `said(incarnation, line)` for children with their output read."""
        self._loop = asyncio.get_running_loop()
        self._exited = exited
        self._said = said
        self._running: dict[str, _Running] = {}

    def spawn(
        self, incarnation: str, module: str, arguments: list[str], environment: dict[str, str], *, read_output: bool
    ) -> int:
        """Start `python -m module`, its own process group, and return its pid. Raises OSError.

        The name stays in the command line, so that `ps` tells what a process is.
        """
        hold, lifeline = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module,
                    "--lifeline",
                    str(hold),
                    "--supervisor-pid",
                    str(os.getpid()),
                    *arguments,
                ],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if read_output else subprocess.DEVNULL,
                pass_fds=(hold,),
                start_new_session=True,
            )
        except OSError:
            os.close(lifeline)
            raise
        finally:
            os.close(hold)
        output = None
        if process.stdout is not None:
            output = os.dup(process.stdout.fileno())
            process.stdout.close()
            os.set_blocking(output, False)
            self._loop.add_reader(output, self._read, incarnation, bytearray())
        running = _Running(process, os.pidfd_open(process.pid), lifeline, output)
        self._running[incarnation] = running
        self._loop.add_reader(running.pidfd, self._reap, incarnation)
        return process.pid

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
        if running.output is not None:
            self._loop.remove_reader(running.output)
            os.close(running.output)
        os.close(running.pidfd)
        os.close(running.lifeline)
        if status < 0:
            self._exited(incarnation, f"signal {signal.Signals(-status).name}", True)
        else:
            self._exited(incarnation, f"status {status}", False)

    def _read(self, incarnation: str, rest: bytearray) -> None:
        output = self._running[incarnation].output
        assert output is not None
        try:
            data = os.read(output, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(output)
            return
        rest += data
        *lines, tail = bytes(rest).split(b"\n")
        rest[:] = tail
        for line in lines:
            self._said(incarnation, line)
