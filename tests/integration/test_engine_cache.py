"""The prefix cache and its host tier with llama.cpp and the demo model, in a real worker process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messages import ClearModelCache, MemoryView, ReportMemory, Run, Sampling, Unloaded, UnloadModel
from tests.support.harness import DEMO_MODEL
from tests.support.tasks import make_task
from tests.support.worker_process import WorkerProcess

SAMPLING = Sampling(temperature=0, logit_bias={0: -1000.0, 2: -1000.0})  # nobody ends early


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One process for the whole module; jobs have the tests' names."""
    worker = WorkerProcess(tmp_path_factory.mktemp("w"))
    try:
        worker.load(str(DEMO_MODEL), kv_tokens=4096, host_cache_mb=512)
        yield worker
    finally:
        assert worker.close() == b""


@pytest.fixture(autouse=True)
def _nothing_stays_held(worker: WorkerProcess, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    worker.send(ClearModelCache(request="clear"))
    assert memory(worker, f"after {request.node.name}") == (0, 0, 0, 0)


def memory(worker: WorkerProcess, request: str) -> tuple[int, int, int, int]:
    """Return running and idle sequences, used cells and MiB in host memory."""
    worker.send(ReportMemory(request=request))
    worker.until(lambda: any(m.request == request for m in worker.of(MemoryView)))
    (model,) = next(m for m in worker.of(MemoryView) if m.request == request).memory.models
    return model.sequences, model.idle, model.kv_used, model.host_mb


def prompt(seed: int, length: int) -> list[int]:
    return [1000 + (seed * 7919 + i * 31) % 40000 for i in range(length)]


def run(worker: WorkerProcess, job: str, tokens: list[int], count: int = 12) -> list[int]:
    """Run one job alone and return its ids."""
    worker.run(make_task(job, tokens, sampling=SAMPLING, max_tokens=count))
    return worker.ids(job)


def uncached(worker: WorkerProcess, job: str, tokens: list[int]) -> list[int]:
    """Run the same prompt with an empty cache before and after it."""
    worker.send(ClearModelCache(request=f"before {job}"))
    ids = run(worker, job, tokens)
    assert worker.end_of(job).cached_tokens == 0
    worker.send(ClearModelCache(request=f"behind {job}"))
    return ids


def reload(worker: WorkerProcess) -> None:
    unloads = len(worker.of(Unloaded))
    worker.send(UnloadModel(model="m"))
    worker.until(lambda: len(worker.of(Unloaded)) > unloads)
    worker.load(str(DEMO_MODEL), kv_tokens=4096, host_cache_mb=512)


def test_a_turn_that_continues_in_the_cells_says_what_it_says_alone(worker: WorkerProcess) -> None:
    first = prompt(1, 400)
    turn = first + run(worker, "cells-1", first) + prompt(2, 30)
    ids = run(worker, "cells-2", turn)
    assert worker.end_of("cells-2").cached_tokens == 411
    assert ids == uncached(worker, "cells-alone", turn)


def test_a_prompt_that_forks_continues_from_the_fork(worker: WorkerProcess) -> None:
    system = prompt(1, 500)
    for i in range(4):
        run(worker, f"fork-{i}", system + prompt(10 + i, 40))
    assert [worker.end_of(f"fork-{i}").cached_tokens for i in range(4)] == [0, 500, 500, 500]
    assert memory(worker, "fork")[2] <= 500 + 4 * 51
    assert worker.ids("fork-3") == uncached(worker, "fork-alone", system + prompt(13, 40))


def test_four_jobs_with_one_prompt_compute_it_once(worker: WorkerProcess) -> None:
    tokens = prompt(1, 900)
    worker.run(*[make_task(f"group-{i}", tokens, sampling=SAMPLING, max_tokens=10) for i in range(4)])
    assert sorted(worker.end_of(f"group-{i}").cached_tokens for i in range(4)) == [0, 899, 899, 899]
    assert len({tuple(worker.ids(f"group-{i}")) for i in range(4)}) == 1


def test_a_conversation_comes_back_from_host_memory_after_a_reload(worker: WorkerProcess) -> None:
    first = prompt(1, 1100)
    turn = first + run(worker, "reload-1", first) + prompt(2, 30)
    reload(worker)
    assert memory(worker, "reloaded")[:3] == (0, 0, 0)
    assert memory(worker, "reloaded once more")[3] > 20
    ids = run(worker, "reload-2", turn)
    assert worker.end_of("reload-2").cached_tokens == 1111
    assert ids == uncached(worker, "reload-alone", turn)


def test_an_idle_conversation_moves_to_host_memory_while_another_runs(worker: WorkerProcess) -> None:
    first = prompt(1, 700)
    turn = first + run(worker, "idle-1", first) + prompt(2, 30)
    worker.send(Run(tasks=[make_task("runs", prompt(3, 20), sampling=SAMPLING, max_tokens=200)]))
    polls = iter(range(1000))
    worker.until(lambda: memory(worker, f"idle {next(polls)}")[1] == 0)
    assert memory(worker, "idle")[2] < 240
    assert memory(worker, "idle too")[3] > 10
    worker.until(lambda: any(i.job == "runs" for i in worker.ended()))
    ids = run(worker, "idle-2", turn)
    assert worker.end_of("idle-2").cached_tokens == 711
    assert ids == uncached(worker, "idle-alone", turn)


def test_when_cells_run_out_who_is_sent_away_comes_back_and_says_the_same(worker: WorkerProcess) -> None:
    """Four prompts of 900 tokens fit; their answers do not."""
    prompts = {f"tight-{i}": prompt(20 + i, 900) for i in range(4)}
    worker.run(*[make_task(j, p, sampling=SAMPLING, max_tokens=200) for j, p in prompts.items()])
    for job in prompts:
        assert (len(worker.ids(job)), worker.started().count(job)) == (200, 1)


def test_the_file_in_use_names_its_states(worker: WorkerProcess, tmp_path: Path) -> None:
    """A copy of the file is another file; nothing of one is restored into the other."""
    tokens = prompt(1, 600)
    run(worker, "named", tokens)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(DEMO_MODEL.read_bytes())
    worker.load(str(copy), "copy", kv_tokens=1024, host_cache_mb=512)
    worker.run(make_task("copied", tokens, model="copy", sampling=SAMPLING, max_tokens=12))
    assert worker.end_of("copied").cached_tokens == 0
    worker.send(UnloadModel(model="copy"))
    worker.until(lambda: any(m.model == "copy" for m in worker.of(Unloaded)))
