"""Filling in: what a request becomes, the tokens around the gap, and llama-server's own replies."""

from typing import Any

import orjson
import pytest

from common.errors import Code, RequestError
from common.messages import Grammar, Infill, Job, JsonSchema, Prepared, Snippet
from cortex.api import errors
from cortex.dialects.contract import Heading
from cortex.dialects.llama_infill import InfillRequest, LlamaInfill
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.fleet.contract import Events
from neuron.prep.infill import fill_in
from neuron.prep.prompt import prepare
from neuron.prep.template import ChatTemplate
from neuron.prep.vocabulary import Gap
from tests.support.fake_engine import FakeVocabulary, Knobs, tokenise
from tests.support.fake_fleet import begun, done

HEADING = Heading(id="42", model="real", created=1)
PREFIX, SUFFIX, MIDDLE, FILE, BOS = 91, 92, 93, 94, 95


def vocabulary(*, file: int | None = FILE, has_gap: bool = True, adds_bos: bool = False) -> FakeVocabulary:
    made = FakeVocabulary(Knobs(), "fake")
    made.gap = Gap(PREFIX, SUFFIX, MIDDLE, file) if has_gap else None
    made.adds_bos, made.bos = adds_bos, BOS
    return made


def read(**fields: Any) -> InfillRequest:
    body = {"model": "m", "input_prefix": "a b", "input_suffix": "c", **fields}
    return LlamaInfill().read(orjson.dumps(body))


def given(**fields: Any) -> Infill:
    (infill,) = read(**fields).generation.inputs
    assert isinstance(infill, Infill)
    return infill


def test_the_gap_stands_between_its_texts() -> None:
    tokens = fill_in(given(prompt="p"), vocabulary(), 100, 9)
    assert tokens == [PREFIX, *tokenise("a b p"), SUFFIX, *tokenise("c"), MIDDLE]
    assert fill_in(given(), vocabulary(adds_bos=True), 100, 9)[:2] == [BOS, PREFIX]


def test_other_files_come_first_under_their_names() -> None:
    extra = [{"filename": "x.py", "text": "one two"}, {"text": "three"}]
    tokens = fill_in(given(input_extra=extra), vocabulary(), 100, 9)
    files = [FILE, *tokenise("x.py one two"), FILE, *tokenise("three"), FILE]
    assert tokens == [*files, *fill_in(given(), vocabulary(), 100, 9)]
    tokens = fill_in(given(input_extra=extra[1:]), vocabulary(file=None), 100, 9)
    assert tokens[: tokens.index(PREFIX)] == tokenise("--- snippet --- three")


@pytest.mark.parametrize(("context", "kept"), [(100, 52), (30, 14), (17, 1), (16, 0), (8, 0)])
def test_of_other_files_as_much_is_left_out_as_does_not_fit(context: int, kept: int) -> None:
    extra = [{"filename": "x", "text": "w " * 49}]
    tokens = fill_in(given(input_extra=extra), vocabulary(), context, 10)
    assert tokens.index(PREFIX) == kept
    assert len(tokens) < context


def test_what_stands_around_the_gap_must_fit() -> None:
    with pytest.raises(RequestError) as caught:
        fill_in(given(input_suffix="w " * 50), vocabulary(), 50, None)
    assert (caught.value.code, caught.value.param) == (Code.CONTEXT_LENGTH_EXCEEDED, "input_suffix")


def test_a_model_that_was_not_made_for_it_is_refused_by_the_requests_own_field() -> None:
    (suffixed,) = OpenAICompletions().read(b'{"model": "m", "prompt": "a", "suffix": "c"}').generation.inputs
    assert suffixed == Infill(prefix="a", suffix="c")
    for infill, param in ((given(), "input_suffix"), (suffixed, "suffix")):
        with pytest.raises(RequestError) as caught:
            fill_in(infill, vocabulary(has_gap=False), 100, 9)
        assert (caught.value.code, caught.value.param) == (Code.UNSUPPORTED_PARAMETER, param)


def test_prep_makes_a_task_of_it() -> None:
    job = Job(id="j", attempt=0, model="m", request_id="r", input=given(), max_tokens=50)
    made = prepare(job, vocabulary(), ChatTemplate(None, bos="", eos=""), 40)
    assert isinstance(made, Prepared)
    assert (len(made.tokens), made.max_tokens) == (6, 34)


def test_what_fills_the_gap_can_be_held_to_a_grammar() -> None:
    for fields, constraint in (
        ({"grammar": 'root ::= "a"'}, Grammar(gbnf='root ::= "a"')),
        ({"json_schema": {"type": "null"}}, JsonSchema(schema={"type": "null"})),
    ):
        generation = read(**fields).generation
        assert (generation.constraint, generation.constraint_field) == (constraint, next(iter(fields)))
    job = Job(id="j", attempt=0, model="m", request_id="r", input=given(), constraint=JsonSchema(schema={"const": 1}))
    made = prepare(job, vocabulary(), ChatTemplate(None, bos="", eos=""), 40)
    assert isinstance(made, Prepared)
    assert made.constraint is not None
    assert '"1"' in made.constraint.gbnf


def test_fields_act_or_are_refused_by_name() -> None:
    request = read(n_predict=7, stream=True, temperature=0, stop=["\n"], cache_prompt=True, samplers=["top_k"],
                   input_extra=[{"filename": "x", "text": "y"}])  # fmt: skip
    generation = request.generation
    assert (generation.max_tokens, generation.is_stream, generation.sampling.stop) == (7, True, ["\n"])
    assert generation.inputs == [
        Infill(prefix="a b", suffix="c", extra=[Snippet(text="y", filename="x")], field="input_suffix")
    ]
    assert read(n_predict=-1).generation.max_tokens is None
    for fields, code in (
        ({"input_suffix": None}, Code.INVALID_VALUE),
        ({"input_extra": [{}]}, Code.MISSING_FIELD),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, Code.INVALID_VALUE),
    ):
        with pytest.raises(RequestError) as caught:
            read(**fields)
        assert caught.value.code == code
        assert (caught.value.param or "").startswith(next(iter(fields)))


@pytest.mark.parametrize(("reason", "kind"), [("stop", "eos"), ("length", "limit"), ("stop_sequence", "word")])
def test_folding_the_stream_gives_the_body(reason: str, kind: str) -> None:
    events: Events = [(0, begun(7, 3)), (0, "x ="), (0, "\n1"), (0, done(2, reason))]
    request = read()
    stream, body = request.stream(HEADING), request.body(HEADING)
    frames = [orjson.loads(stream.feed([event])[6:] or b"{}") for event in events]
    body.feed(events)
    whole = orjson.loads(body.render())
    assert stream.is_complete
    assert [f.get("stop") for f in frames] == [None, False, False, True]
    assert {**frames[-1], "content": "".join(f.get("content", "") for f in frames)} == whole
    assert (whole["content"], whole["stop_type"], whole["has_new_line"]) == ("x =\n1", kind, True)
    assert (whole["tokens_predicted"], whole["tokens_evaluated"]) == (2, 5)
    assert whole["timings"]["predicted_n"] == 2


def test_a_failure_in_mid_stream_is_the_last_event() -> None:
    stream = read(stream=True).stream(HEADING)
    stream.feed([(0, begun())])
    data = stream.fail(errors.to_openai(RequestError(Code.WORKER_DIED, "gone")))
    assert orjson.loads(data[6:])["error"]["code"] == "worker_died"
    assert not stream.is_complete
    assert stream.ping().startswith(b":")
