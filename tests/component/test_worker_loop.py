"""The loop with the fake engine, in this process; the link is a list."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from common.codec import decode_from_worker
from common.errors import Code
from common.messages import (
    EVENT_FRAME,
    TOKENS_FRAME,
    AbortTasks,
    CacheCleared,
    ClearModelCache,
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    FromWorker,
    Go,
    Hold,
    JobKey,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MemoryView,
    Pulse,
    ReportMemory,
    Run,
    Sampling,
    Started,
    Stop,
    TokenItem,
    Tokens,
    ToWorker,
    Unloaded,
    UnloadModel,
    WorkerHello,
)
from neuron.process import breadcrumb
from neuron.worker import lane as lane_module
from neuron.worker.engine import Chunk, DecodeResult, DeviceLost, Engine
from neuron.worker.loop import Loop
from tests.support.fake_engine import FakeEngine, FakeModel, answer, text_of, tokenise, write_model
from tests.support.tasks import make_task, text_lane

T = TypeVar("T")
PROMPT = tokenise("the quick brown fox")


class FakeLink:
    """Two lists."""

    def __init__(self) -> None:
        self.inbox: list[ToWorker] = []
        self.sent: list[tuple[str, bytes, FromWorker]] = []
        self.has_room = True

    def receive(self) -> list[ToWorker]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, gateway: str, kind: bytes, payload: bytes) -> bool:
        if self.has_room:
            self.sent.append((gateway, kind, decode_from_worker(payload)))
        return self.has_room

    def wait(self, timeout_s: float) -> None:
        time.sleep(min(timeout_s, 0.001))

    def wake(self) -> None:
        pass


class Harness:
    """A loop, and what a supervisor would have understood of it."""

    def __init__(self, folder: Path, engine: Engine | None = None, crumb: breadcrumb.Breadcrumb | None = None) -> None:
        self.folder = folder
        self.link = FakeLink()
        self.loop = Loop(
            engine or FakeEngine(), self.link, incarnation="i", device="d", step_budget_s=0.25, crumb=crumb
        )

    def load(self, name: str = "m", *, context: int = 8192, kv: int = 8192, parallel: int = 4, **knobs: object) -> None:
        path = write_model(self.folder / f"{name}.gguf", **knobs)
        self.say(LoadModel(model=name, path=path, context=context, kv_tokens=kv, parallel=parallel))
        self.until(lambda: any(m.model == name for m in self.of(Loaded)) or any(self.of(LoadFailed)))

    def model(self, name: str = "m") -> FakeModel:
        model = self.loop.lanes[name].model
        assert isinstance(model, FakeModel)
        return model

    def say(self, *messages: ToWorker) -> None:
        self.link.inbox += messages

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.step()
            for lane in self.loop.lanes.values():
                lane.check()

    def until(self, reached: Callable[[], bool], limit_s: float = 5.0) -> None:
        deadline = time.monotonic() + limit_s
        while not reached():
            assert time.monotonic() < deadline, self.link.sent[-5:]
            self.step()

    def until_over(self, *jobs: str) -> None:
        self.until(lambda: {i.job for i in self.ended()} | {i.job for i in self.failed()} >= set(jobs))

    def of(self, kind: type[T]) -> list[T]:
        return [m for _, _, m in self.link.sent if isinstance(m, kind)]

    def started(self) -> list[str]:
        return [i.job for m in self.of(Started) for i in m.items]

    def items(self, job: str) -> list[TokenItem]:
        return [i for m in self.of(Tokens) for i in m.items if i.job == job]

    def ids(self, job: str) -> list[int]:
        return [t for i in self.items(job) for t in i.ids]

    def text(self, job: str) -> str:
        return "".join(i.text for i in self.items(job))

    def ended(self) -> list[EndedItem]:
        return [i for m in self.of(Ended) for i in m.items]

    def failed(self) -> list[FailedItem]:
        return [i for m in self.of(Failed) for i in m.items]

    def end_of(self, job: str) -> EndedItem:
        (item,) = [i for i in self.ended() if i.job == job]
        return item

    def check_books(self, name: str = "m") -> None:
        """Assert that nothing is held for anybody, and that every output was gapless."""
        lane = text_lane(self.loop.lanes, name)
        lane.check()
        assert not lane.is_busy
        assert lane.kv.slots.seated == []
        resident = {r.sequence: r.tokens for r in lane.kv.cache}
        assert {s: self.model(name).tokens(s) for s in self.model(name).cells} == resident
        assert self.model(name).used == lane.kv.cells.used
        assert self.model(name).open_samplers == 0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.loop.close()


def test_hello_names_build_backend_and_incarnation(worker: Harness) -> None:
    worker.loop.greet()
    worker.step()
    (hello,) = worker.of(WorkerHello)
    assert (hello.incarnation, hello.build, hello.backend, hello.devices) == ("i", "fake 1", "CPU", [])


def test_a_task_gets_started_then_its_tokens_then_its_end(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("a", PROMPT, max_tokens=5)]))
    worker.until_over("a")
    kinds = [type(m) for gateway, _, m in worker.link.sent if gateway]
    assert kinds == [Started, *[Tokens] * 5, Ended]
    assert [i.at for i in worker.items("a")] == [0, 1, 2, 3, 4]
    assert worker.ids("a") == answer(PROMPT, 5)
    assert worker.text("a") == text_of(answer(PROMPT, 5))
    end = worker.end_of("a")
    assert (end.total, end.reason, end.prompt_tokens) == (5, "length", len(PROMPT))
    assert (end.timings.prompt_n, end.timings.predicted_n) == (len(PROMPT), 5)
    worker.check_books()


def test_tokens_travel_in_their_own_kind_of_frame_so_that_the_supervisor_need_not_decode_them(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("a", PROMPT, max_tokens=2)]))
    worker.until_over("a")
    assert {(kind, type(m)) for g, kind, m in worker.link.sent if g} == {
        (EVENT_FRAME, Started),
        (TOKENS_FRAME, Tokens),
        (EVENT_FRAME, Ended),
    }


def test_the_end_token_is_neither_counted_nor_emitted(worker: Harness) -> None:
    worker.load(length=3)
    worker.say(Run(tasks=[make_task("a", PROMPT)]))
    worker.until_over("a")
    assert worker.ids("a") == answer(PROMPT, 3)
    assert (worker.end_of("a").total, worker.end_of("a").reason) == (3, "stop")


def test_many_tasks_each_get_the_answer_to_their_own_prompt(worker: Harness) -> None:
    worker.load(parallel=4)
    prompts = {f"j{i}": tokenise(f"question number {i} " + "word " * (37 * i)) for i in range(16)}
    worker.say(Run(tasks=[make_task(j, p, max_tokens=20 + len(p) % 7) for j, p in prompts.items()]))
    worker.until_over(*prompts)
    for job, prompt in prompts.items():
        assert worker.ids(job) == answer(prompt, 20 + len(prompt) % 7)
        assert [i.at for i in worker.items(job)] == list(range(len(worker.ids(job))))
    assert sorted(worker.started()) == sorted(prompts)
    worker.check_books()


def test_a_step_sends_one_tokens_message_to_each_gateway(worker: Harness) -> None:
    worker.load()
    tasks = [make_task(f"j{i}", PROMPT, gateway=f"g{i % 2}") for i in range(4)]
    worker.say(Run(tasks=tasks))
    worker.step(3)
    worker.link.sent.clear()
    worker.step()
    sent = [(gateway, len(m.items)) for gateway, _, m in worker.link.sent if isinstance(m, Tokens)]
    assert sorted(sent) == [("g0", 2), ("g1", 2)]


def test_a_stop_string_across_tokens_ends_the_text_before_it_and_its_ids_are_counted(worker: Harness) -> None:
    worker.load(text="Hello STOP not this", bytes_per_token=2)
    worker.say(Run(tasks=[make_task("a", PROMPT, sampling=Sampling(stop=["STOP"]))]))
    worker.until_over("a")
    end = worker.end_of("a")
    assert (worker.text("a"), end.reason, end.stop_sequence) == ("Hello ", "stop_sequence", "STOP")
    assert (end.total, len(worker.ids("a"))) == (5, 5)


def test_ids_travel_with_their_step_while_their_text_is_held_back(worker: Harness) -> None:
    worker.load(text="a😀b", bytes_per_token=1)
    worker.say(Run(tasks=[make_task("a", PROMPT)]))
    worker.until_over("a")
    assert [(i.at, i.text) for i in worker.items("a")] == [(0, "a"), (1, ""), (2, ""), (3, ""), (4, "😀"), (5, "b")]
    assert all(len(i.ids) == 1 for i in worker.items("a"))


def test_held_text_is_shown_at_the_end(worker: Harness) -> None:
    worker.load(text="go ST", bytes_per_token=1)
    worker.say(Run(tasks=[make_task("a", PROMPT, sampling=Sampling(stop=["STOP"]))]))
    worker.say(Run(tasks=[make_task("b", PROMPT, sampling=Sampling(stop=["STOP"]), max_tokens=4)]))
    worker.until_over("a", "b")
    assert (worker.text("a"), worker.end_of("a").reason) == ("go ST", "stop")
    assert (worker.text("b"), worker.end_of("b").reason) == ("go S", "length")


@pytest.mark.parametrize("cut_at", range(1, 13))
def test_a_resumed_job_goes_on_exactly_where_the_client_is(worker: Harness, cut_at: int) -> None:
    worker.load(text="aé😀 STO STOP no", bytes_per_token=1)
    sampling = Sampling(stop=["STOP"])
    worker.say(Run(tasks=[make_task("whole", PROMPT, sampling=sampling)]))
    worker.until_over("whole")
    delivered = worker.items("whole")[:cut_at]
    ids = [t for i in delivered for t in i.ids]
    worker.say(Run(tasks=[make_task("rest", PROMPT, sampling=sampling, resume=ids, attempt=2)]))
    worker.until_over("rest")
    assert "".join(i.text for i in delivered) + worker.text("rest") == worker.text("whole") == "aé😀 STO "
    assert ids + worker.ids("rest") == worker.ids("whole")
    assert worker.items("rest")[0].at == cut_at
    assert worker.end_of("rest").total == worker.end_of("whole").total


def test_a_job_whose_end_alone_was_lost_is_ended_again_without_a_token(worker: Harness) -> None:
    worker.load(text="yes STOP", bytes_per_token=4)
    worker.say(Run(tasks=[make_task("stop", PROMPT, sampling=Sampling(stop=["STOP"]), resume=[2_000_000, 2_000_001])]))
    worker.say(Run(tasks=[make_task("length", PROMPT, max_tokens=2, resume=[2_000_000, 2_000_001])]))
    worker.until_over("stop", "length")
    assert (worker.end_of("stop").reason, worker.end_of("length").reason) == ("stop_sequence", "length")
    assert worker.items("stop") == worker.items("length") == []
    worker.check_books()


def test_an_abort_frees_slot_and_cells_within_one_step(worker: Harness) -> None:
    worker.load(parallel=2)
    worker.say(
        Run(tasks=[make_task("decoding", PROMPT), make_task("prefilling", [5] * 2000), make_task("waiting", PROMPT)])
    )
    worker.step(2)
    assert worker.started() == ["decoding", "prefilling"]
    assert len(worker.model().cells[1]) < 2000
    worker.say(
        AbortTasks(jobs=[JobKey("decoding", 1), JobKey("prefilling", 1), JobKey("waiting", 1), JobKey("unknown", 1)])
    )
    worker.link.sent.clear()
    worker.step()
    worker.check_books()
    assert [m for g, _, m in worker.link.sent if g] == []


def test_an_abort_of_an_older_attempt_leaves_the_newer_one_alone(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("a", PROMPT, attempt=2, max_tokens=3)]), AbortTasks(jobs=[JobKey("a", 1)]))
    worker.until_over("a")
    assert worker.ids("a") == answer(PROMPT, 3)


def test_a_higher_attempt_replaces_the_older_one_silently_and_repeats_are_ignored(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("a", PROMPT, max_tokens=6)]))
    worker.step(3)
    ids = worker.ids("a")
    worker.link.sent.clear()
    again = make_task("a", PROMPT, max_tokens=6, attempt=2, resume=ids)
    worker.say(Run(tasks=[again]), Run(tasks=[again]))
    worker.until_over("a")
    assert {i.attempt for i in worker.items("a")} == {2}
    assert ids + worker.ids("a") == answer(PROMPT, 6)
    assert len(worker.ended()) == 1
    worker.check_books()


def test_out_of_cells_a_sequence_waits_and_goes_on_where_it_was(worker: Harness) -> None:
    worker.load(kv=300, parallel=4)
    prompts = {f"j{i}": [10 + i] * 50 for i in range(4)}
    worker.say(Run(tasks=[make_task(j, p, max_tokens=200) for j, p in prompts.items()]))
    worker.until_over(*prompts)
    for job, prompt in prompts.items():
        assert worker.ids(job) == answer(prompt, 200)
        assert [i.at for i in worker.items(job)] == list(range(200))
        assert worker.end_of(job).reason == "length"
    assert sorted(worker.started()) == sorted(prompts)
    worker.check_books()


def test_fewer_cells_than_promised_are_found_out_and_lived_with(worker: Harness) -> None:
    worker.load(kv=1000, parallel=4, real_kv_tokens=300)
    prompts = {f"j{i}": [10 + i] * 60 for i in range(4)}
    worker.say(Run(tasks=[make_task(j, p, max_tokens=150) for j, p in prompts.items()]))
    worker.until_over(*prompts)
    for job, prompt in prompts.items():
        assert worker.ids(job) == answer(prompt, 150)
    worker.check_books()


def test_a_prompt_that_can_never_fit_fails_by_name_and_the_next_one_runs(worker: Harness) -> None:
    worker.load(kv=256)
    worker.say(Run(tasks=[make_task("big", [5] * 256), make_task("small", PROMPT, max_tokens=2)]))
    worker.until_over("big", "small")
    (failure,) = worker.failed()
    assert (failure.job, failure.code) == ("big", Code.PROMPT_TOO_LONG_FOR_MEMORY)
    assert worker.started() == ["small"]
    worker.check_books()


def test_an_answer_that_fills_the_pool_alone_ends_with_length(worker: Harness) -> None:
    worker.load(kv=256)
    worker.say(Run(tasks=[make_task("a", [5] * 200, max_tokens=1000)]))
    worker.until_over("a")
    assert (worker.end_of("a").reason, worker.end_of("a").total) == ("length", 57)
    assert worker.ids("a") == answer([5] * 200, 57)
    worker.check_books()


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        ([], Code.INVALID_VALUE),
        ([-1], Code.INVALID_VALUE),
        ([3_000_000], Code.INVALID_VALUE),
        ([5] * 100, Code.CONTEXT_LENGTH_EXCEEDED),
    ],
)
def test_a_task_no_engine_could_run_fails_before_any_decode(worker: Harness, tokens: list[int], code: Code) -> None:
    worker.load(context=100)
    worker.say(Run(tasks=[make_task("a", tokens)]))
    worker.until_over("a")
    assert worker.failed()[0].code == code
    assert worker.loop.steps == 0
    worker.check_books()


def test_sampling_values_that_cannot_be_used_fail_by_name(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("a", PROMPT, sampling=Sampling(logit_bias={9_999_999: 1.0}))]))
    worker.until_over("a")
    assert (worker.failed()[0].code, worker.failed()[0].param) == (Code.INVALID_VALUE, "logit_bias")
    worker.check_books()


def test_an_exception_fails_the_one_task_it_belongs_to(worker: Harness) -> None:
    worker.load(raise_at=3, only_for="poison")
    poison = tokenise("this is poison indeed")
    worker.say(Run(tasks=[make_task("bad", poison), make_task("good", PROMPT, max_tokens=8)]))
    worker.until_over("bad", "good")
    assert [(f.job, f.code) for f in worker.failed()] == [("bad", Code.INTERNAL_ERROR)]
    assert worker.ids("bad") == answer(poison, 3)
    assert worker.ids("good") == answer(PROMPT, 8)
    worker.check_books()


def test_a_lost_device_ends_the_loop(worker: Harness) -> None:
    worker.load(lose_device_at=1)
    worker.say(Run(tasks=[make_task("a", PROMPT)]))
    with pytest.raises(DeviceLost):
        worker.step(5)


def test_a_task_for_a_model_that_is_not_here_fails_retriable(worker: Harness) -> None:
    worker.say(Run(tasks=[make_task("a", PROMPT, model="other")]))
    worker.step()
    (failure,) = worker.failed()
    assert (failure.code, failure.retriable) == (Code.MODEL_UNLOADED, True)


def test_unloading_ends_running_and_waiting_tasks_and_frees_the_model(
    worker: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    worker.load(parallel=1)
    model = worker.model()
    worker.say(Run(tasks=[make_task("running", PROMPT), make_task("waiting", PROMPT)]))
    worker.step(3)
    worker.say(UnloadModel(model="m"))
    worker.until(lambda: bool(worker.of(Unloaded)))
    assert {(f.job, f.code, f.retriable) for f in worker.failed()} == {
        ("running", Code.MODEL_UNLOADED, True),
        ("waiting", Code.MODEL_UNLOADED, True),
    }
    assert model.is_closed
    assert model.open_samplers == 0
    assert worker.loop.lanes == {}
    # Tests of whole fleets look for this in the log: no model is to be unloaded with work in flight.
    codes = [f["code"] for r in caplog.records if (f := getattr(r, "fields", None)) is not None and "code" in f]
    assert list(map(str, codes)) == ["model_unloaded"] * 2


def test_unloading_what_is_not_loaded_is_answered(worker: Harness) -> None:
    worker.say(UnloadModel(model="m"))
    worker.step()
    assert [m.model for m in worker.of(Unloaded)] == ["m"]


def test_unloading_what_is_being_loaded_ends_the_load(worker: Harness) -> None:
    path = write_model(worker.folder / "m.gguf", load_s=60.0)
    worker.say(LoadModel(model="m", path=path, context=100, kv_tokens=100, parallel=1))
    worker.step(3)
    worker.say(UnloadModel(model="m"))
    worker.until(lambda: bool(worker.of(Unloaded)), limit_s=2.0)
    assert worker.loop.lanes == {}
    assert not worker.of(Loaded)
    assert not worker.of(LoadFailed)
    worker.load()
    assert list(worker.loop.lanes) == ["m"]


def test_streams_go_on_while_another_model_loads_and_progress_is_reported(worker: Harness) -> None:
    worker.load("first", token_s=0.001)
    worker.say(Run(tasks=[make_task("a", PROMPT, model="first", max_tokens=1000)]))
    worker.step(2)
    before = len(worker.ids("a"))
    worker.load("second", load_s=0.3)
    assert len(worker.ids("a")) - before > 20
    fractions = [m.progress for m in worker.of(LoadProgress)]
    assert fractions == sorted(fractions)
    assert 2 <= len(fractions) <= 4
    assert [m.model for m in worker.of(Loaded)] == ["first", "second"]


def test_several_models_are_stepped_in_turn(worker: Harness) -> None:
    worker.load("one")
    worker.load("two")
    worker.say(Run(tasks=[make_task("a", PROMPT, model="one", max_tokens=9)]))
    worker.say(Run(tasks=[make_task("b", PROMPT, model="two", max_tokens=9)]))
    worker.until_over("a", "b")
    assert worker.ids("a") == worker.ids("b") == answer(PROMPT, 9)


def test_a_slow_model_leaves_its_fast_neighbour_half_of_the_device(worker: Harness) -> None:
    worker.load("slow", token_s=0.1)  # long steps: beside other programs a short one takes far longer than it sleeps
    worker.load("fast", token_s=0.01)
    worker.say(Run(tasks=[make_task("s", PROMPT, model="slow", max_tokens=6)]))
    worker.say(Run(tasks=[make_task("f", PROMPT, model="fast", max_tokens=1000)]))
    worker.until_over("s")
    assert 6 * 4 < len(worker.ids("f")) < 6 * 14
    worker.say(AbortTasks(jobs=[JobKey("f", 1)]))


@pytest.mark.parametrize(
    ("content", "reason", "code"),
    [
        ({"oom_at_load": True}, "out of memory", Code.NO_CAPACITY),
        ({"refuse_load": "no such type"}, "no such type", Code.MODEL_LOADING_FAILED),
        (None, "JSON", Code.MODEL_LOADING_FAILED),
    ],
)
def test_a_load_that_fails_says_why_and_leaves_nothing(
    worker: Harness, content: dict[str, object] | None, reason: str, code: Code
) -> None:
    path = worker.folder / "m.gguf"
    if content is None:
        path.write_bytes(b"GGUF?")
    else:
        write_model(path, **content)
    worker.say(LoadModel(model="m", path=str(path), context=100, kv_tokens=100, parallel=1))
    worker.until(lambda: bool(worker.of(LoadFailed)))
    (failure,) = worker.of(LoadFailed)
    assert (failure.code, reason in failure.message) == (code, True)
    assert worker.loop.lanes == {}


def test_a_held_gateways_tokens_are_merged_and_nobody_else_notices(worker: Harness) -> None:
    worker.load()
    worker.say(Hold(gateway="slow"))
    worker.say(Run(tasks=[make_task("a", PROMPT, gateway="slow"), make_task("b", PROMPT, gateway="fast")]))
    worker.step(6)
    assert worker.items("a") == []
    assert len(worker.items("b")) == 6
    worker.say(Go(gateway="slow"))
    worker.step()
    merged, *_ = worker.items("a")
    assert (merged.at, merged.ids, merged.text) == (0, answer(PROMPT, 6), text_of(answer(PROMPT, 6)))


def test_a_held_job_that_ends_is_told_at_once_text_first(worker: Harness) -> None:
    worker.load()
    worker.say(Hold(gateway="slow"))
    worker.say(Run(tasks=[make_task(j, PROMPT, gateway="slow", max_tokens=n) for j, n in (("a", 3), ("b", 50))]))
    worker.until_over("a")
    assert [type(m) for g, _, m in worker.link.sent if g] == [Started, Tokens, Ended]
    assert (worker.ids("a"), worker.items("b")) == (answer(PROMPT, 3), [])


def test_what_the_supervisor_has_no_room_for_is_kept_and_merged(worker: Harness) -> None:
    worker.load()
    worker.link.has_room = False
    worker.say(Run(tasks=[make_task("a", PROMPT, max_tokens=5)]))
    worker.step(8)
    worker.link.has_room = True
    worker.until_over("a")
    assert worker.started() == ["a"]
    assert [(i.at, i.ids) for i in worker.items("a")] == [(0, answer(PROMPT, 5))]


def test_a_prompt_does_not_make_running_streams_wait_longer_than_the_budget(worker: Harness) -> None:
    worker.load(token_s=0.005, prefill_token_s=0.001)
    worker.say(Run(tasks=[make_task("stream", PROMPT, max_tokens=5000)]))
    worker.step(5)
    worker.say(Run(tasks=[make_task("long", [5] * 1500, max_tokens=1)]))
    gaps, last = [], time.monotonic()
    while not worker.ended():
        worker.step()
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    assert max(gaps) < 0.4
    assert sum(gaps) < 2.2


def test_alone_a_prompt_goes_in_the_largest_chunks(worker: Harness) -> None:
    worker.load()
    worker.say(Run(tasks=[make_task("long", [5] * 1500, max_tokens=1)]))
    worker.until_over("long")
    assert worker.loop.steps == 3


def test_pulses_name_the_phase_before_it_begins(worker: Harness) -> None:
    worker.load()
    worker.step()
    worker.say(Run(tasks=[make_task("a", [5] * 600, max_tokens=3)]))
    worker.until_over("a")
    worker.step()
    assert [m.phase for m in worker.of(Pulse)][-4:] == ["idle", "prefill", "decode", "idle"]
    kinds = [m for _, _, m in worker.link.sent]
    assert kinds.index(next(m for m in worker.of(Pulse) if m.phase == "prefill")) < kinds.index(worker.of(Tokens)[0])


def test_a_load_without_progress_gives_no_sign_of_life(worker: Harness) -> None:
    path = write_model(worker.folder / "m.gguf", warm_s=0.6)
    worker.say(LoadModel(model="m", path=path, context=100, kv_tokens=100, parallel=1))
    worker.until(lambda: bool(worker.of(Loaded)))
    phases = [m.phase for m in worker.of(Pulse)]
    assert phases.count("loading") <= 1
    assert phases.count("warming") == 1


def test_memory_is_reported_as_the_worker_sees_it(worker: Harness) -> None:
    worker.load(memory_mb=77)
    worker.say(Run(tasks=[make_task("a", PROMPT)]))
    worker.step(3)
    worker.say(ReportMemory(request="r"))
    worker.step()
    (view,) = worker.of(MemoryView)
    (model,) = view.memory.models
    assert (view.request, view.memory.device, model.model, model.weights_mb) == ("r", "d", "m", 77)
    assert (model.sequences, model.kv_used) == (1, len(PROMPT) + 2)
    assert view.memory.process_mb > 10
    (progress,) = view.memory.jobs
    assert (progress.job, progress.phase, progress.prompt_n) == ("a", "decode", len(PROMPT))
    assert progress.tokens == view.memory.tokens == 3


def test_clearing_the_cache_of_a_worker_without_a_model_says_so(worker: Harness) -> None:
    worker.say(ClearModelCache(request="r"))
    worker.step()
    assert worker.of(CacheCleared) == [CacheCleared(request="r", sequences=0)]


@pytest.mark.parametrize(("kind", "kept_mb"), [("cuda", 70), ("cpu", 0)])
def test_an_unload_says_what_the_device_did_not_get_back(tmp_path: Path, kind: str, kept_mb: int) -> None:
    worker = Harness(tmp_path, FakeEngine(kind))
    for name, keeps in (("tight", 0), ("leaky", 70)):
        worker.load(name, memory_mb=300, keep_mb=keeps)
    for name in ("tight", "leaky"):
        worker.say(UnloadModel(model=name))
        worker.until(lambda name=name: name in [m.model for m in worker.of(Unloaded)], limit_s=20)  # type: ignore[misc]
    assert [(m.model, m.kept_mb) for m in worker.of(Unloaded)] == [("tight", 0), ("leaky", kept_mb)]
    worker.loop.close()


def test_memory_that_the_engine_does_not_account_for_is_measured_where_no_driver_tells(tmp_path: Path) -> None:
    worker = Harness(tmp_path)
    worker.load("honest", memory_mb=77)
    worker.load("greedy", memory_mb=77, beyond_mb=200)
    took = {m.model: m.memory_mb for m in worker.of(Loaded)}
    assert took["honest"] == 77
    assert 195 <= took["greedy"] < 260
    worker.loop.close()


def test_a_worker_of_several_devices_loads_each_model_on_those_it_is_told(tmp_path: Path) -> None:
    engine = FakeEngine("cuda")
    # The second and third device are shares of one GPU, for tests: it is in the split once.
    loop = Loop(engine, FakeLink(), incarnation="i", device="d", step_budget_s=0.25, places=[0, 1, 1])
    link = loop._link
    assert isinstance(link, FakeLink)
    for number, devices in enumerate(([], [0], [1, 2], [0, 2])):
        path = write_model(tmp_path / f"{number}.gguf")
        link.inbox.append(
            LoadModel(model=str(number), path=path, context=64, kv_tokens=256, parallel=1, devices=devices)
        )
    deadline = time.monotonic() + 5.0
    while len(loop.lanes) < 4:
        assert time.monotonic() < deadline
        loop.step()
    assert engine.loaded_on == [[], [0], [1], [0, 1]]
    loop.close()


def test_stop_ends_the_loop_and_frees_everything(tmp_path: Path) -> None:
    worker = Harness(tmp_path)
    worker.load()
    model = worker.model()
    worker.say(Run(tasks=[make_task("a", PROMPT)]))
    worker.step(2)
    worker.say(Stop())
    worker.loop.run()
    assert model.is_closed
    assert model.open_samplers == 0
    assert worker.failed()[0].code == Code.SHUTTING_DOWN


def test_a_load_in_progress_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    worker = Harness(tmp_path)
    path = write_model(tmp_path / "m.gguf", load_s=60.0)
    worker.say(LoadModel(model="m", path=path, context=100, kv_tokens=100, parallel=1))
    worker.step()
    began = time.monotonic()
    worker.say(Stop())
    worker.loop.run()
    assert time.monotonic() - began < 1.0


def test_fake_model_files_are_plain_json(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", length=3)
    assert msgspec.json.decode(Path(path).read_bytes())["length"] == 3


def test_a_prompt_on_a_slow_host_is_cut_into_steps_that_the_watchdog_sees(
    worker: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "LONGEST_STEP_S", 0.02)
    worker.load(prefill_token_s=0.0005, warm_s=0.0005)
    prompt = tokenise(" ".join(f"word{i}" for i in range(800)))
    worker.say(Run(tasks=[make_task("j", prompt, max_tokens=2)]))
    worker.until_over("j")
    chunks = [len(c.tokens) for c in worker.model().computed]
    assert max(chunks) <= 60
    assert worker.ids("j") == answer(prompt, 2)


def test_what_is_computed_is_left_behind_before_each_call(tmp_path: Path) -> None:
    fd = breadcrumb.create()
    seen: list[tuple[str, ...]] = []
    worker = Harness(tmp_path, crumb=breadcrumb.Breadcrumb(fd))
    try:
        worker.load()
        model = worker.model()
        decode, next_token = model.decode, model.next_token

        def look_and_decode(chunks: Sequence[Chunk]) -> DecodeResult:
            seen.append(breadcrumb.read(fd).named)
            return decode(chunks)

        def look_and_choose(chunk: int, prompt: list[int], output: list[int]) -> int:
            seen.append(breadcrumb.read(fd).named)
            return next_token(chunk, prompt, output)

        model.decode, model.next_token = look_and_decode, look_and_choose  # type: ignore[method-assign]
        worker.say(Run(tasks=[make_task("a", PROMPT, max_tokens=2), make_task("b", PROMPT, max_tokens=2)]))
        worker.until_over("a", "b")
        assert set(seen) >= {("a", "b"), ("a",), ("b",)}
        assert breadcrumb.read(fd) == breadcrumb.Trace(worker.loop.steps, ())
    finally:
        worker.loop.close()
        os.close(fd)
