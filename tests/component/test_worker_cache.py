"""What the loop keeps of finished, preempted and unloaded sequences; the fake engine's cells tell the truth."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.messages import (
    AbortTasks,
    CacheCleared,
    ClearModelCache,
    EndedItem,
    JobKey,
    LoadModel,
    MemoryView,
    ReportMemory,
    Run,
    ShareHostMemory,
    Started,
    Task,
    Unloaded,
    UnloadModel,
)
from neuron.worker import kv_pool
from neuron.worker.host_tier import PIECE_TOKENS
from tests.component.test_worker_loop import Harness
from tests.support.fake_engine import answer, write_model
from tests.support.tasks import make_task, text_lane

KINDS = ("CELLS", "WINDOW", "STATE")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.loop.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle sequences go to host memory at once."""
    monkeypatch.setattr(kv_pool, "SAVE_AFTER_S", 0.0)
    monkeypatch.setattr(kv_pool, "LEAVE_AFTER_S", 0.0)


def words(seed: int, length: int) -> list[int]:
    return [1_000_000 + n for n in random.Random(seed).choices(range(1_000_000), k=length)]


def load(
    worker: Harness, name: str = "m", *, kv: int = 8192, parallel: int = 4, host_mb: int = 64, **knobs: object
) -> None:
    """Load with a host tier."""
    path = write_model(worker.folder / f"{name}.gguf", **knobs)
    order = LoadModel(model=name, path=path, context=8192, kv_tokens=kv, parallel=parallel)
    worker.say(ShareHostMemory(mb=host_mb), order)
    worker.until(lambda: name in worker.loop.lanes)


def run(worker: Harness, *tasks: Task) -> list[EndedItem]:
    """Run tasks to their ends, and return these."""
    worker.say(Run(tasks=list(tasks)))
    worker.until_over(*[t.job for t in tasks])
    return [worker.end_of(t.job) for t in tasks]


def computed(worker: Harness, name: str = "m") -> int:
    """Return how many tokens were computed, and count from zero again."""
    model = worker.model(name)
    count = sum(len(c.tokens) for c in model.computed)
    model.computed.clear()
    return count


def settle(worker: Harness, name: str = "m") -> None:
    """Step until nothing is left to save."""
    pool = text_lane(worker.loop.lanes, name).kv
    worker.until(lambda: all(r.saved == len(r.tokens) for r in pool.cache))


@pytest.mark.parametrize("memory", KINDS)
def test_the_next_turn_computes_only_what_is_new(worker: Harness, memory: str) -> None:
    load(worker, memory=memory)
    first = words(1, 600)
    run(worker, make_task("one", first, max_tokens=20))
    assert computed(worker) == 619
    second = [*first, *answer(first, 20), *words(2, 50)]
    (end,) = run(worker, make_task("two", second, max_tokens=5))
    assert worker.ids("two") == answer(second, 5)
    assert (end.cached_tokens, end.timings.cache_n, end.timings.prompt_n) == (619, 619, 51)
    assert computed(worker) == 51 + 4
    started = [i for m in worker.of(Started) for i in m.items]
    assert [i.cached_tokens for i in started] == [0, 619]
    worker.check_books()


@pytest.mark.parametrize("memory", KINDS)
def test_the_same_prompt_again_is_nearly_free(worker: Harness, memory: str) -> None:
    load(worker, memory=memory)
    prompt = words(1, 600)
    for job in ("one", "two"):
        run(worker, make_task(job, prompt, max_tokens=3))
        assert worker.ids(job) == answer(prompt, 3)
    assert worker.end_of("two").cached_tokens >= 600 - kv_pool.TAIL_TOKENS
    worker.check_books()


def test_conversations_share_their_system_prompt_in_the_same_cells(worker: Harness) -> None:
    load(worker, kv=4096)
    system = words(1, 1500)
    for i in range(8):
        run(worker, make_task(f"j{i}", system + words(10 + i, 60), max_tokens=10))
    assert computed(worker) == 1500 + 8 * 69
    assert text_lane(worker.loop.lanes).kv.cells.used == worker.model().used == 1500 + 8 * 69
    worker.check_books()


@pytest.mark.parametrize("memory", ["WINDOW", "STATE"])
def test_where_memory_cannot_be_cut_a_state_is_kept_at_the_fork_that_was_seen(worker: Harness, memory: str) -> None:
    load(worker, memory=memory)
    system = words(1, 500)
    ends = [run(worker, make_task(f"j{i}", system + words(10 + i, 60), max_tokens=10))[0] for i in range(3)]
    assert [e.cached_tokens for e in ends] == [0, 0, 500]
    worker.check_books()


@pytest.mark.parametrize("memory", KINDS)
def test_jobs_with_the_same_new_prompt_compute_it_once(worker: Harness, memory: str) -> None:
    load(worker, memory=memory)
    prompt = words(1, 1500)
    ends = run(worker, *[make_task(f"j{i}", prompt, max_tokens=10) for i in range(4)])
    for i in range(4):
        assert worker.ids(f"j{i}") == answer(prompt, 10)
    tail = 1 if memory == "CELLS" else kv_pool.TAIL_TOKENS
    assert computed(worker) == 1500 + 3 * tail + 4 * 9
    assert sorted(e.cached_tokens for e in ends) == [0] + 3 * [1500 - tail]
    worker.check_books()


def test_a_follower_goes_on_alone_when_its_leader_is_aborted(worker: Harness) -> None:
    load(worker)
    prompt = words(1, 3000)
    worker.say(Run(tasks=[make_task("leader", prompt), make_task("follower", prompt, max_tokens=3)]))
    worker.step(2)
    assert worker.started() == ["leader"]
    worker.say(AbortTasks(jobs=[JobKey("leader", 1)]))
    worker.until_over("follower")
    assert worker.ids("follower") == answer(prompt, 3)
    assert computed(worker) == 3002
    worker.check_books()


def test_the_least_recently_used_makes_room_for_a_new_prompt(worker: Harness) -> None:
    load(worker, kv=1024, host_mb=0)
    for i in range(3):
        run(worker, make_task(f"j{i}", words(i, 300), max_tokens=5))
    run(worker, make_task("again", words(0, 300), max_tokens=5))
    run(worker, make_task("large", words(9, 600), max_tokens=5))
    left = [r.tokens[:300] for r in text_lane(worker.loop.lanes).kv.cache]
    assert words(0, 300) in left
    assert words(1, 300) not in left
    worker.check_books()


@pytest.mark.parametrize("memory", KINDS)
def test_an_idle_conversation_leaves_its_cells_while_others_run_and_comes_back(
    worker: Harness, memory: str, eager: None
) -> None:
    load(worker, memory=memory)
    first = words(1, 1300)
    run(worker, make_task("one", first, max_tokens=20))
    settle(worker)
    worker.say(Run(tasks=[make_task("other", words(2, 30), max_tokens=200)]))
    pool = text_lane(worker.loop.lanes).kv
    worker.until(lambda: len(pool.cache) == 0)
    assert pool.cells.used < 300
    computed(worker)
    second = [*first, *answer(first, 20), *words(3, 10)]
    (end,) = run(worker, make_task("two", second, max_tokens=5))
    assert worker.ids("two") == answer(second, 5)
    assert end.cached_tokens == worker.model().restored == 1319
    worker.until_over("other")
    worker.check_books()


def test_an_idle_conversation_makes_way_for_a_newcomer_whom_it_would_slow(worker: Harness) -> None:
    load(worker, attention_share=0.001, prefill_token_s=0.00001)
    prompts = [words(i, 700) for i in range(3)]
    run(worker, *[make_task(f"one{i}", p, max_tokens=5) for i, p in enumerate(prompts)])
    pool = text_lane(worker.loop.lanes).kv
    pool._cost.saved(0.0, 100)
    pool._cost.restored(0.0, 100)
    turns = [[*p, *answer(p, 5), *words(50 + i, 30)] for i, p in enumerate(prompts)]
    worker.say(
        Run(tasks=[make_task("other", words(9, 400), max_tokens=100), make_task("two1", turns[1], max_tokens=5)])
    )
    worker.until(lambda: "other" in worker.started())
    assert [r.tokens[:700] for r in pool.cache] == [], "whoever is neither running nor wanted has left"
    worker.until_over("two1")
    assert worker.end_of("two1").cached_tokens == 704
    assert worker.model().restored == 0, "its cells were still there, since it was waiting"
    worker.until_over("other")
    (end,) = run(worker, make_task("two2", turns[2], max_tokens=5))
    assert end.cached_tokens == worker.model().restored == 704
    assert worker.ids("two2") == answer(turns[2], 5)
    worker.check_books()


def test_an_idle_conversation_stays_where_moving_it_costs_more(worker: Harness) -> None:
    load(worker, attention_share=0.001, prefill_token_s=0.00001)
    run(worker, make_task("one", words(1, 700), max_tokens=5))
    pool = text_lane(worker.loop.lanes).kv
    pool._cost.saved(10.0, 100)
    pool._cost.restored(10.0, 100)
    run(worker, make_task("other", words(9, 400), max_tokens=5))
    assert len(pool.cache) == 2


@pytest.mark.parametrize("memory", KINDS)
def test_conversations_survive_an_unload_and_reload(worker: Harness, memory: str) -> None:
    load(worker, memory=memory, parallel=8)
    prompts = [words(i, 700) for i in range(8)]
    run(worker, *[make_task(f"one{i}", p, max_tokens=20) for i, p in enumerate(prompts)])
    worker.say(UnloadModel(model="m"))
    worker.until(lambda: bool(worker.of(Unloaded)))
    worker.loop._host.check()
    load(worker, memory=memory, parallel=8)
    turns = [[*p, *answer(p, 20), *words(50 + i, 30)] for i, p in enumerate(prompts)]
    ends = run(worker, *[make_task(f"two{i}", t, max_tokens=5) for i, t in enumerate(turns)])
    assert [e.cached_tokens for e in ends] == [719] * 8
    for i, turn in enumerate(turns):
        assert worker.ids(f"two{i}") == answer(turn, 5)
    worker.check_books()


def test_a_file_that_changed_in_between_finds_nothing(worker: Harness) -> None:
    load(worker)
    run(worker, make_task("one", words(1, 700), max_tokens=5))
    worker.say(UnloadModel(model="m"))
    worker.until(lambda: bool(worker.of(Unloaded)))
    load(worker, memory_mb=101)
    assert run(worker, make_task("two", words(1, 700), max_tokens=5))[0].cached_tokens == 0


def test_a_refused_restore_is_a_miss(worker: Harness) -> None:
    load(worker, refuse_restore=True)
    run(worker, make_task("one", words(1, 700), max_tokens=5))
    pool = text_lane(worker.loop.lanes).kv
    while pool._evict_one():
        pass
    (end,) = run(worker, make_task("two", words(1, 700), max_tokens=5))
    assert (end.cached_tokens, worker.ids("two")) == (0, worker.ids("one"))
    worker.check_books()


def test_one_slow_restore_is_not_the_last_one(worker: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    load(worker)
    lane = text_lane(worker.loop.lanes)
    pool, model, now, slow_s = lane.kv, worker.model(), 0.0, 60.0
    restore = model.restore

    def restore_slowly(sequence: int, state: bytearray, start: int, end: int) -> bool:
        nonlocal now
        now += slow_s
        return restore(sequence, state, start, end)

    monkeypatch.setattr(pool, "_clock", lambda: now)
    monkeypatch.setattr(lane._pace, "token_s", lambda position: 0.001)
    monkeypatch.setattr(model, "restore", restore_slowly)
    prompt, cached = words(1, 700), []
    for turn in range(16):
        cached.append(run(worker, make_task(f"turn{turn}", prompt, max_tokens=3))[0].cached_tokens)
        while pool._evict_one():
            pass
        slow_s = 60.0 if turn == 0 else 0.0
    assert cached[:3] == [0, 699, 0]
    assert cached[-3:] == [699, 699, 699]
    worker.check_books()


@pytest.mark.parametrize("memory", KINDS)
def test_what_host_memory_let_go_of_is_saved_again_before_its_cells_go(
    worker: Harness, memory: str, eager: None
) -> None:
    load(worker, memory=memory)
    prompt = words(1, 700)
    run(worker, make_task("one", prompt, max_tokens=5))
    settle(worker)
    worker.loop._host.clear()
    pool = text_lane(worker.loop.lanes).kv
    while pool._evict_one():
        pass
    (end,) = run(worker, make_task("two", [*prompt, *answer(prompt, 5), *words(2, 40)], max_tokens=5))
    assert end.cached_tokens == 704
    worker.check_books()


def test_a_short_last_piece_does_not_price_the_others(worker: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    load(worker)
    lane = text_lane(worker.loop.lanes)
    pool, model, now = lane.kv, worker.model(), 0.0
    restore = model.restore

    def restore_at_a_price(sequence: int, state: bytearray, start: int, end: int) -> bool:
        nonlocal now
        now += 0.0005 * (end - start) if start < 2 * PIECE_TOKENS else 0.0012 * (end - start)
        return restore(sequence, state, start, end)

    monkeypatch.setattr(pool, "_clock", lambda: now)
    monkeypatch.setattr(lane._pace, "token_s", lambda position: 0.001)
    monkeypatch.setattr(model, "restore", restore_at_a_price)
    prompt = words(1, 2 * PIECE_TOKENS + 60)
    for turn in range(4):
        (end,) = run(worker, make_task(f"turn{turn}", prompt, max_tokens=3))
        assert end.cached_tokens == (len(prompt) - 1 if turn else 0)
        while pool._evict_one():
            pass
    worker.check_books()


def test_a_shared_prefix_is_stored_and_restored_once(worker: Harness, eager: None) -> None:
    load(worker, parallel=4)
    system = words(1, 2 * PIECE_TOKENS)
    run(worker, *[make_task(f"one{i}", system + words(10 + i, 60), max_tokens=10) for i in range(4)])
    settle(worker)
    assert worker.loop._host.used == 64 * (len(system) + 4 * 69)
    pool = text_lane(worker.loop.lanes).kv
    while pool._evict_one():
        pass
    assert worker.model().used == 0
    turns = [[*system, *words(10 + i, 60)] for i in range(4)]
    run(worker, *[make_task(f"two{i}", t, max_tokens=3) for i, t in enumerate(turns)])
    assert worker.model().restored == len(system) + 4 * 59
    worker.check_books()


@pytest.mark.parametrize("host_mb", [0, 64])
def test_out_of_cells_every_answer_is_whole_and_nobody_starts_twice(worker: Harness, host_mb: int) -> None:
    load(worker, kv=1024, parallel=8, host_mb=host_mb)
    prompts = {f"j{i}": words(i, 60) for i in range(8)}
    run(worker, *[make_task(j, p, max_tokens=300) for j, p in prompts.items()])
    for job, prompt in prompts.items():
        assert worker.ids(job) == answer(prompt, 300)
        assert [i.at for i in worker.items(job)] == list(range(300))
    assert sorted(worker.started()) == sorted(prompts)
    assert (worker.model().restored > 0) == (host_mb > 0)
    worker.check_books()


def test_large_answers_are_allowed_for_but_not_reserved(worker: Harness) -> None:
    load(worker, kv=12_000, parallel=8, length=300)
    prompts = {f"j{i}": words(i, 1000) for i in range(8)}
    worker.say(Run(tasks=[make_task(j, p, max_tokens=6000) for j, p in prompts.items()]))
    worker.until(lambda: len(worker.started()) == 8)
    assert worker.ended() == []
    worker.until_over(*prompts)
    assert all(worker.ids(j) == answer(p, 300) for j, p in prompts.items())
    worker.check_books()


def test_clearing_the_cache_leaves_running_sequences_alone(worker: Harness) -> None:
    load(worker)
    for i in range(3):
        run(worker, make_task(f"j{i}", words(i, 100), max_tokens=3))
    worker.say(Run(tasks=[make_task("runs", words(9, 100), max_tokens=20)]))
    worker.step(2)
    worker.say(ClearModelCache(request="r"), ReportMemory(request="m"))
    worker.step()
    assert worker.of(CacheCleared) == [CacheCleared(request="r", sequences=3)]
    (view,) = worker.of(MemoryView)[-1].memory.models
    assert (view.sequences, view.idle, view.host_mb) == (1, 0, 0)
    worker.until_over("runs")
    worker.check_books()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new", "turn", "same", "abort", "step", "clear", "reload"]),
        st.integers(0, 5),
        st.integers(1, 700),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), STEPS)
def test_whatever_happens_answers_are_right_and_the_books_agree(
    tmp_path: Path, eager: None, memory: str, actions: list[tuple[str, int, int]]
) -> None:
    worker = Harness(tmp_path)
    try:
        load(worker, memory=memory, kv=1600, parallel=3, host_mb=1, state_bytes_per_token=512)
        wanted: dict[str, tuple[list[int], int]] = {}
        for number, (action, which, length) in enumerate(actions):
            known = list(wanted.values())
            job, count = f"j{number}", 1 + (which * 37 + length) % 120
            if action == "step":
                worker.step(which)
            elif action == "abort" and wanted:
                worker.say(AbortTasks(jobs=[JobKey(list(wanted)[which % len(wanted)], 1)]))
                del wanted[list(wanted)[which % len(wanted)]]
            elif action == "clear":
                worker.say(ClearModelCache(request=str(number)))
            elif action == "reload":
                worker.until_over(*wanted)
                unloads = len(worker.of(Unloaded))
                worker.say(UnloadModel(model="m"))
                worker.until(lambda unloads=unloads: len(worker.of(Unloaded)) > unloads)  # type: ignore[misc]
                load(worker, memory=memory, kv=1600, parallel=3, host_mb=1, state_bytes_per_token=512)
            else:
                prompt = words(which, length)
                if known and action != "new":
                    base, said = known[which % len(known)]
                    prompt = [*base, *answer(base, said), *prompt] if action == "turn" else base
                if len(prompt) + count < 1500:
                    wanted[job] = (prompt, count)
                    worker.say(Run(tasks=[make_task(job, prompt, max_tokens=count)]))
        worker.until_over(*wanted)
        worker.step()  # takes the last aborts
        for job, (prompt, count) in wanted.items():
            assert worker.ids(job) == answer(prompt, count)
        worker.check_books()
        worker.loop._host.check()
    finally:
        worker.loop.close()
