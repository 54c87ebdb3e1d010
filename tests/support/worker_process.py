"""A real worker process, and the supervisor's end of its bus."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from common.codec import decode_from_worker, encode
from common.frames import FrameSocket
from common.ids import new_incarnation
from common.messages import (
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    FromWorker,
    Loaded,
    LoadFailed,
    LoadModel,
    Run,
    ShareHostMemory,
    Started,
    Stop,
    Task,
    TokenItem,
    Tokens,
    ToWorker,
    WorkerHello,
)

T = TypeVar("T")
POLL_S = 0.02


class WorkerProcess:
    """Starts `python -m neuron.worker` as the supervisor does; `close` ends it whatever it does."""

    def __init__(self, folder: Path, *, engine: str = "llama", threads: int = 2, step_budget_ms: int = 250) -> None:
        self.messages: list[tuple[float, FromWorker]] = []
        """With the monotonic time of each."""
        self._incarnation = new_incarnation()
        end, theirs = socket.socketpair()
        end.settimeout(POLL_S)
        self._end, self._line = end, FrameSocket(end)
        hold, self._lifeline = os.pipe()
        self.process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "neuron.worker",
                    "--line",
                    str(theirs.fileno()),
                    "--incarnation",
                    self._incarnation,
                ),
                *("--device", "cpu-0", "--kind", "cpu", "--threads", str(threads), "--lifeline", str(hold)),
                *("--supervisor-pid", str(os.getpid()), "--engine", engine),
                *("--step-budget-ms", str(step_budget_ms), "--log-level", "warning", "--log-format", "text"),
            ],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "GGML_NO_BACKTRACE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(hold, theirs.fileno()),
            start_new_session=True,
        )
        os.close(hold)
        theirs.close()
        self.until(lambda: bool(self.of(WorkerHello)), 30)

    def send(self, *messages: ToWorker) -> None:
        for message in messages:
            self._line.send([encode(message)])

    def until(self, reached: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Take messages until `reached`; fails if the worker ends before."""
        deadline = time.monotonic() + limit_s
        while not reached():
            assert time.monotonic() < deadline, self.messages[-5:]
            try:
                for _gateway, _kind, payload in self._line.receive():
                    self.messages.append((time.monotonic(), decode_from_worker(payload)))
            except TimeoutError:
                pass
            except EOFError:
                pytest.fail(f"the worker ended with {self.process.wait(5)}")

    def load(
        self,
        path: str,
        name: str = "m",
        *,
        context: int = 8192,
        kv_tokens: int = 8192,
        parallel: int = 4,
        host_cache_mb: int = 0,
    ) -> Loaded:
        """Load a model. Raises AssertionError with the worker's reason."""
        answers = len(self.of(Loaded)) + len(self.of(LoadFailed))
        self.send(ShareHostMemory(mb=host_cache_mb))
        self.send(
            LoadModel(
                model=name,
                path=path,
                context=context,
                kv_tokens=kv_tokens,
                parallel=parallel,
            )
        )
        self.until(lambda: len(self.of(Loaded)) + len(self.of(LoadFailed)) > answers)
        failed = [m.message for m in self.of(LoadFailed) if m.model == name]
        assert not failed, failed
        return next(m for m in self.of(Loaded) if m.model == name)

    def run(self, *tasks: Task) -> None:
        """Run tasks to their ends, and check that each has exactly one, and its tokens no gap."""
        self.send(Run(tasks=list(tasks)))
        jobs = {t.job for t in tasks}
        self.until(lambda: {i.job for i in self.ended()} | {i.job for i in self.failed()} >= jobs, 60)
        for task in tasks:
            ends = [i.job for i in self.ended()] + [i.job for i in self.failed()]
            assert ends.count(task.job) == 1
            at = len(task.resume_tokens)
            for item in self.items(task.job):
                assert item.at == at
                at += len(item.ids)

    def of(self, kind: type[T]) -> list[T]:
        return [m for _, m in self.messages if isinstance(m, kind)]

    def items(self, job: str) -> list[TokenItem]:
        return [i for m in self.of(Tokens) for i in m.items if i.job == job]

    def times(self, job: str) -> list[float]:
        """Return when each item of a job came."""
        return [t for t, m in self.messages if isinstance(m, Tokens) for i in m.items if i.job == job]

    def ids(self, job: str) -> list[int]:
        return [t for i in self.items(job) for t in i.ids]

    def text(self, job: str) -> str:
        return "".join(i.text for i in self.items(job))

    def started(self) -> list[str]:
        return [i.job for m in self.of(Started) for i in m.items]

    def ended(self) -> list[EndedItem]:
        return [i for m in self.of(Ended) for i in m.items]

    def failed(self) -> list[FailedItem]:
        return [i for m in self.of(Failed) for i in m.items]

    def end_of(self, job: str) -> EndedItem:
        (item,) = [i for i in self.ended() if i.job == job]
        return item

    def stop(self) -> int:
        """Send Stop and return the exit status."""
        self.send(Stop())
        return self.process.wait(10)

    def cut_lifeline(self) -> None:
        """Do what the supervisor's death does."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def close(self) -> bytes:
        """End the process group; return what was written to stdout."""
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.send(Stop())
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.cut_lifeline()
        self._line.close()
        with self.process.stdout as stdout:
            return stdout.read()
