"""The worker as a process: how it ends. With the fake engine."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messages import LoadModel, Run
from neuron.worker.__main__ import DEVICE_LOST
from tests.support.fake_engine import answer, tokenise, write_model
from tests.support.tasks import make_task
from tests.support.worker_process import WorkerProcess

PROMPT = tokenise("hello there")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path, engine="tests.support.fake_engine")
    yield worker
    worker.close()


def test_it_serves_and_exits_with_status_0_when_told_to_stop(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.load(write_model(tmp_path / "m.gguf"))
    worker.run(make_task("a", PROMPT, max_tokens=50))
    assert worker.ids("a") == answer(PROMPT, 50)
    assert worker.stop() == 0


def test_sigterm_in_mid_stream_ends_it_cleanly(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.load(write_model(tmp_path / "m.gguf", token_s=0.01))
    worker.send(Run(tasks=[make_task("a", PROMPT, max_tokens=8000)]))
    worker.until(lambda: len(worker.items("a")) > 3)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(2) == 0


def test_sigterm_wakes_an_idle_worker_at_once(worker: WorkerProcess) -> None:
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(0.9) == 0


def test_a_worker_told_to_ignore_sigterm_does(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.load(write_model(tmp_path / "m.gguf", ignore_sigterm=True))
    worker.process.send_signal(signal.SIGTERM)
    worker.run(make_task("a", PROMPT, max_tokens=50))
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("knob", "status"),
    [
        ("segfault_at", -signal.SIGSEGV),
        ("abort_at", -signal.SIGABRT),
        ("exit_at", 3),
        ("lose_device_at", DEVICE_LOST),
    ],
)
def test_a_fault_at_a_token_ends_the_process_with_a_status_that_tells_which(
    worker: WorkerProcess, tmp_path: Path, knob: str, status: int
) -> None:
    worker.load(write_model(tmp_path / "m.gguf", **{knob: 3}))
    worker.send(Run(tasks=[make_task("a", PROMPT)]))
    assert worker.process.wait(10) == status


def test_a_crash_in_a_load_ends_the_process(worker: WorkerProcess, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", crash_at_load=True)
    worker.send(LoadModel(model="m", path=path, context=10, kv_tokens=10, parallel=1))
    assert worker.process.wait(10) == -signal.SIGSEGV


def test_the_end_of_the_supervisors_pipe_ends_a_worker_that_hangs(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.load(write_model(tmp_path / "m.gguf", hang_at=0))
    worker.send(Run(tasks=[make_task("a", PROMPT)]))
    worker.until(lambda: worker.started() == ["a"])
    worker.cut_lifeline()
    assert worker.process.wait(2) != 0
