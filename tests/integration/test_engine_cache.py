"""The prefix cache and its host tier with llama.cpp and the demo model, in a real worker process."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messages import ClearModelCache, MemoryView, ReportMemory, Run, Sampling, Unloaded, UnloadModel
from neuron.prep.llama_vocabulary import open_vocabulary
from tests.support.harness import DEMO_MODEL
from tests.support.tasks import make_task
from tests.support.worker_process import WorkerProcess

WORDS = [
    "river",
    "stone",
    "garden",
    "window",
    "letter",
    "market",
    "forest",
    "silver",
    "morning",
    "paper",
    "bridge",
    "winter",
    "island",
    "music",
    "doctor",
    "engine",
    "kitchen",
    "mountain",
    "soldier",
    "picture",
    "station",
    "teacher",
    "harvest",
    "village",
]
VOCABULARY = open_vocabulary(str(DEMO_MODEL))
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
    """Return a text that says the same again and again.

    How it goes on is so likely that sums in another order, by other cells or batches, do not change it; what was
    restored wrongly does.
    """
    words = random.Random(seed).sample(WORDS, 12)
    text = " ".join(words) + ". "
    return VOCABULARY.tokenise(text * length, add_special=False, parse_special=False)[:length]


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
    first = prompt(1, 200)
    turn = first + run(worker, "cells-1", first) + prompt(2, 30)
    ids = run(worker, "cells-2", turn)
    assert worker.end_of("cells-2").cached_tokens == 211
    assert ids == uncached(worker, "cells-alone", turn)


def test_a_prompt_that_forks_continues_from_the_fork(worker: WorkerProcess) -> None:
    system = prompt(1, 200)
    for i in range(4):
        run(worker, f"fork-{i}", system + prompt(10 + i, 40))
    assert [worker.end_of(f"fork-{i}").cached_tokens for i in range(4)] == [0, 200, 200, 200]
    assert memory(worker, "fork")[2] <= 200 + 4 * 51
    assert worker.ids("fork-3") == uncached(worker, "fork-alone", system + prompt(13, 40))


def test_four_jobs_with_one_prompt_compute_it_once(worker: WorkerProcess) -> None:
    tokens = prompt(1, 600)
    worker.run(*[make_task(f"group-{i}", tokens, sampling=SAMPLING, max_tokens=10) for i in range(4)])
    assert sorted(worker.end_of(f"group-{i}").cached_tokens for i in range(4)) == [0, 599, 599, 599]
    assert len({tuple(worker.ids(f"group-{i}")) for i in range(4)}) == 1


def test_a_conversation_comes_back_from_host_memory_after_a_reload(worker: WorkerProcess) -> None:
    first = prompt(1, 600)
    turn = first + run(worker, "reload-1", first) + prompt(2, 30)
    reload(worker)
    assert memory(worker, "reloaded")[:3] == (0, 0, 0)
    assert memory(worker, "reloaded once more")[3] > 10
    ids = run(worker, "reload-2", turn)
    assert worker.end_of("reload-2").cached_tokens == 611
    assert ids == uncached(worker, "reload-alone", turn)


def test_an_idle_conversation_moves_to_host_memory_while_another_runs(worker: WorkerProcess) -> None:
    first = prompt(1, 520)
    turn = first + run(worker, "idle-1", first) + prompt(2, 30)
    worker.send(Run(tasks=[make_task("runs", prompt(3, 20), sampling=SAMPLING, max_tokens=200)]))
    polls = iter(range(1000))
    worker.until(lambda: memory(worker, f"idle {next(polls)}")[1] == 0)
    assert memory(worker, "idle")[2] < 240
    assert memory(worker, "idle too")[3] > 10
    worker.until(lambda: any(i.job == "runs" for i in worker.ended()))
    ids = run(worker, "idle-2", turn)
    assert worker.end_of("idle-2").cached_tokens == 531
    assert ids == uncached(worker, "idle-alone", turn)


def test_when_cells_run_out_who_is_sent_away_comes_back_and_says_the_same(worker: WorkerProcess) -> None:
    """Four prompts of 150 tokens fit; their answers do not."""
    worker.load(str(DEMO_MODEL), "tight", kv_tokens=768, host_cache_mb=512)
    prompts = {f"tight-{i}": prompt(20 + i, 150) for i in range(4)}
    worker.run(*[make_task(j, p, model="tight", sampling=SAMPLING, max_tokens=80) for j, p in prompts.items()])
    for job, tokens in prompts.items():
        assert worker.ids(job) == prompt(int(job[-1]) + 20, 150 + 80)[150:], tokens
        assert worker.started().count(job) == 1
    worker.send(UnloadModel(model="tight"))
    worker.until(lambda: any(m.model == "tight" for m in worker.of(Unloaded)))


def test_the_file_in_use_names_its_states(worker: WorkerProcess, tmp_path: Path) -> None:
    """A copy of the file is another file; nothing of one is restored into the other."""
    tokens = prompt(1, 100)
    run(worker, "named", tokens)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(DEMO_MODEL.read_bytes())
    worker.load(str(copy), "copy", kv_tokens=1024, host_cache_mb=512)
    worker.run(make_task("copied", tokens, model="copy", sampling=SAMPLING, max_tokens=12))
    assert worker.end_of("copied").cached_tokens == 0
    worker.send(UnloadModel(model="copy"))
    worker.until(lambda: any(m.model == "copy" for m in worker.of(Unloaded)))
