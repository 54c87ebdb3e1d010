"""Every kind of memory llama.cpp has: cells, windows, states, and both; with tiny models on a real context."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messages import (
    CacheCleared,
    ClearModelCache,
    LoadModel,
    Run,
    Sampling,
    ShareHostMemory,
    Unloaded,
    UnloadModel,
)
from neuron.worker import kv_pool
from neuron.worker.engine import MemoryKind
from neuron.worker.llama_engine import create_engine
from tests.component.test_worker_loop import Harness
from tests.support.tasks import make_task, text_lane
from tests.support.tiny_models import KINDS, WINDOW, write_tiny_model

GREEDY = Sampling(temperature=0, logit_bias={0: -1000.0, 1: -1000.0, 2: -1000.0})
EXPECTED_KIND = {
    "llama": MemoryKind.CELLS,
    "gemma3": MemoryKind.WINDOW,
    "mamba": MemoryKind.STATE,
    "lfm2": MemoryKind.STATE,
}


class Engine(Harness):
    """A loop over llama.cpp in this process."""

    def __init__(self, folder: Path, architecture: str) -> None:
        super().__init__(folder, create_engine(2, "cpu"))
        self.path = write_tiny_model(folder, architecture)

    def load_tiny(self, *, kv_tokens: int = 2048, parallel: int = 4) -> None:
        order = LoadModel(model="m", path=str(self.path), context=2048, kv_tokens=kv_tokens, parallel=parallel)
        self.say(ShareHostMemory(mb=64), order)
        self.until(lambda: "m" in self.loop.lanes, limit_s=30)

    def unload(self) -> None:
        unloads = len(self.of(Unloaded))
        self.say(UnloadModel(model="m"))
        self.until(lambda: len(self.of(Unloaded)) > unloads)

    def run(self, prompts: dict[str, list[int]], count: int = 16) -> None:
        self.say(Run(tasks=[make_task(j, p, sampling=GREEDY, max_tokens=count) for j, p in prompts.items()]))
        self.until(lambda: {i.job for i in self.ended()} >= set(prompts) or bool(self.failed()), limit_s=60)
        assert self.failed() == []

    def cached(self, job: str) -> int:
        return self.end_of(job).cached_tokens

    def alone(self, prompt: list[int], count: int = 16) -> list[int]:
        """Return the answer that an empty cache gives, and leave an empty one behind."""
        job = f"alone-{len(self.ended())}"
        self.clear()
        self.run({job: prompt}, count)
        assert self.cached(job) == 0
        self.clear()
        return self.ids(job)

    def clear(self) -> None:
        answers = len(self.of(CacheCleared))
        self.say(ClearModelCache(request="clear"))
        self.until(lambda: len(self.of(CacheCleared)) > answers)
        pool = text_lane(self.loop.lanes).kv
        pool.check()
        assert (pool.cells.used, len(pool.cache)) == (0, 0)


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path, request.param)
    try:
        engine.load_tiny()
        assert engine.loop.lanes["m"].model.kind is EXPECTED_KIND[request.param]
        yield engine
        engine.clear()
    finally:
        engine.loop.close()


def words(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=length)


def test_a_conversation_continues_where_it_was(engine: Engine) -> None:
    turn, known = words(1, 200), 0
    for number in range(3):
        engine.run({f"turn{number}": turn})
        assert engine.cached(f"turn{number}") == known
        known = len(turn) + 15
        turn = [*turn, *engine.ids(f"turn{number}"), *words(10 + number, 40)]
    engine.run({"last": turn})
    assert engine.ids("last") == engine.alone(turn)


def test_the_same_prompt_again_says_the_same(engine: Engine) -> None:
    prompt = words(1, 300)
    engine.run({"one": prompt})
    engine.run({"two": prompt})
    assert engine.cached("two") >= 300 - kv_pool.TAIL_TOKENS
    assert engine.ids("one") == engine.ids("two") == engine.alone(prompt)


def test_prompts_that_fork_continue_from_the_fork(engine: Engine) -> None:
    system = words(1, 250)
    prompts = {f"fork{i}": [*system, *words(10 + i, 50)] for i in range(4)}
    for job, prompt in prompts.items():
        engine.run({job: prompt})
    assert [engine.cached(j) for j in prompts][2:] == [250, 250]
    assert {j: engine.ids(j) for j in prompts} == {j: engine.alone(p) for j, p in prompts.items()}


def test_four_with_one_prompt_compute_it_once(engine: Engine) -> None:
    prompt = words(1, 600)
    jobs = {f"group{i}": prompt for i in range(4)}
    engine.run(jobs)
    assert sorted(engine.cached(j) for j in jobs)[1:] == 3 * [max(engine.cached(j) for j in jobs)]
    assert max(engine.cached(j) for j in jobs) >= 600 - kv_pool.TAIL_TOKENS
    alone = engine.alone(prompt)
    assert all(engine.ids(j) == alone for j in jobs)


def test_conversations_come_back_after_a_reload(engine: Engine) -> None:
    prompts = {f"one{i}": words(i, 2 * WINDOW + 600 + i) for i in range(3)}
    engine.run(prompts)
    turns = {f"two{i}": [*p, *engine.ids(j), *words(20 + i, 30)] for i, (j, p) in enumerate(prompts.items())}
    engine.unload()
    engine.load_tiny()
    engine.run(turns)
    assert [engine.cached(j) for j in turns] == [len(p) + 15 for p in prompts.values()]
    assert {j: engine.ids(j) for j in turns} == {j: engine.alone(t) for j, t in turns.items()}


def test_out_of_cells_every_answer_is_what_it_is_alone(engine: Engine) -> None:
    engine.unload()
    engine.load_tiny(kv_tokens=512, parallel=4)
    prompts = {f"tight{i}": words(i, 60) for i in range(6)}
    engine.run(prompts, 120)
    assert sorted(engine.started()) == sorted(prompts)
    assert {j: engine.ids(j) for j in prompts} == {j: engine.alone(p, 120) for j, p in prompts.items()}
