"""What an answer is held to: from the request's fields to the job, and from the job to a grammar."""

from typing import Any

import orjson
import pytest

from common.errors import Code, RequestError
from common.messages import Grammar, Job, JsonObject, JsonSchema, Sampling, Text
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Dialect
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions
from neuron.prep.constraint import resolve
from tests.support.fake_engine import FakeVocabulary, Knobs

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
PATH = "response_format.json_schema.schema"


def chat(**fields: Any) -> Generation:
    return OpenAIChat().read(orjson.dumps({"model": "m", "messages": HELLO, **fields})).generation


def refused(dialect: Dialect, **fields: Any) -> tuple[Code, str | None]:
    given = {"messages": HELLO} if isinstance(dialect, OpenAIChat) else {"prompt": "x"}
    with pytest.raises(RequestError) as caught:
        dialect.read(orjson.dumps({"model": "m", **given, **fields}))
    return caught.value.code, caught.value.param


@pytest.mark.parametrize(
    ("fields", "constraint", "field"),
    [
        ({}, None, "response_format"),
        ({"response_format": {"type": "text"}}, None, "response_format"),
        ({"response_format": {"type": "json_object"}}, JsonObject(), "response_format"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            JsonSchema(schema=SCHEMA),
            "response_format.schema",
        ),
        ({"response_format": NAMED}, JsonSchema(schema=SCHEMA), PATH),
        ({"json_schema": SCHEMA}, JsonSchema(schema=SCHEMA), "json_schema"),
        ({"grammar": 'root ::= "x"'}, Grammar(gbnf='root ::= "x"'), "grammar"),
        ({"grammar": ""}, None, "response_format"),
    ],
)
def test_each_field_is_a_constraint_that_knows_its_name(fields: dict[str, Any], constraint: Any, field: str) -> None:
    generation = chat(**fields)
    assert (generation.constraint, generation.constraint_field) == (constraint, field)
    body = orjson.dumps({"model": "m", "prompt": "x", **fields})
    assert OpenAICompletions().read(body).generation.constraint == constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, PATH),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, PATH),
        ({"response_format": NAMED, "grammar": "root ::= x"}, "grammar"),
        ({"json_schema": SCHEMA, "grammar": "root ::= x"}, "grammar"),
        ({"grammar": 3}, "grammar"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"mirostat": 3}, "mirostat"),
        ({"typical_p": 2}, "typical_p"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
        ({"tools": TOOLS, "grammar": 'root ::= "x"'}, "grammar"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(OpenAIChat(), **fields)[1] == param


def test_json_can_be_asked_for_beside_tools() -> None:
    generation = chat(tools=TOOLS, response_format=NAMED)
    assert generation.constraint == JsonSchema(schema=SCHEMA)
    assert chat(tools=TOOLS, tool_choice="none", grammar='root ::= "x"').constraint == Grammar(gbnf='root ::= "x"')


def test_sampling_goes_on_under_llama_servers_names() -> None:
    fields: dict[str, Any] = {
        "typical_p": 0.9, "xtc_probability": 0.1, "xtc_threshold": 0.2, "dry_multiplier": 0.8, "dry_base": 2.0,
        "dry_allowed_length": 3, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["."], "mirostat": 2,
        "mirostat_tau": 4.0, "mirostat_eta": 0.2, "ignore_eos": True, "repeat_last_n": 32,
    }  # fmt: skip
    assert chat(**fields).sampling == Sampling(**fields)


def test_log_probabilities_are_asked_for_by_their_number() -> None:
    assert chat().logprobs is None
    assert chat(logprobs=False).logprobs is None
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).logprobs == 20


def job(constraint: Any, **fields: Any) -> Job:
    return Job(id="j", attempt=0, model="m", request_id="r", input=Text(text="x"), constraint=constraint, **fields)


def resolved(given: Job) -> Grammar | None:
    return resolve(given, FakeVocabulary(Knobs(), "fake"))


def test_every_constraint_becomes_a_grammar_that_keeps_its_triggers() -> None:
    assert resolved(job(None)) is None
    given = Grammar(gbnf='root ::= "x"\n', triggers=["<tool_call>"])
    assert resolved(job(given)) == given
    for constraint in (JsonObject(triggers=["t"]), JsonSchema(schema=SCHEMA, triggers=["t"])):
        grammar = resolved(job(constraint))
        assert grammar is not None
        assert grammar.gbnf.startswith("root ::= ")
        assert grammar.triggers == ["t"]


@pytest.mark.parametrize(
    ("constraint", "param"),
    [
        (Grammar(gbnf="root ::= "), None),
        (Grammar(gbnf="x" * 2**20), "f"),
        (Grammar(gbnf="root ::= " + "(" * 20_000), "f"),
        (Grammar(gbnf='root ::= "x"\n', triggers=[""]), "f"),
        (JsonSchema(schema={"type": "array", "uniqueItems": True}), "f.uniqueItems"),
        (JsonSchema(schema={"$ref": "#"}), "f"),
        (JsonSchema(schema={"enum": ["x" * 70_000]}), "f"),
    ],
)
def test_a_broken_or_oversize_one_is_refused_and_says_where(constraint: Any, param: str | None) -> None:
    if param is None:
        resolved(job(constraint, constraint_field="f"))  # the empty text is a grammar too
        return
    with pytest.raises(RequestError) as caught:
        resolved(job(constraint, constraint_field="f"))
    assert (caught.value.code, caught.value.param) == (Code.INVALID_VALUE, param)


def test_an_answer_held_to_a_grammar_must_be_able_to_end() -> None:
    with pytest.raises(RequestError) as caught:
        resolved(job(JsonObject(), sampling=Sampling(ignore_eos=True)))
    assert caught.value.param == "ignore_eos"
