"""Structured answers, log-probabilities and bad grammars over HTTP, with the real model and the official client."""

import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron

MODEL = "smollm2-135m-instruct"
PROFILE = {"id": MODEL, "source": DEMO_SOURCE, "context": 4096, "kv_tokens": 8192, "parallel": 4}
ASK: Any = [{"role": "user", "content": "Describe a cat named Tom as JSON."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
        "mood": {"enum": ["calm", "wild"]},
    },
    "required": ["name", "legs", "mood"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "cat", "strict": True, "schema": SCHEMA}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("fleet")
    with (
        Neuron(base / "n", models=[PROFILE], preload=[MODEL]) as neuron,
        Gateway(base / "g", neurons=[neuron]) as gateway,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.openai() as opened:
        yield opened


def test_a_strict_schema_holds_streaming_and_not(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASK, response_format=FORMAT, seed=3, temperature=1.2)
    text = whole.choices[0].message.content or ""
    cat = json.loads(text)
    assert set(cat) == {"name", "legs", "mood"}
    assert 0 <= cat["legs"] <= 8
    assert cat["mood"] in ("calm", "wild")
    chunks = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format=FORMAT, seed=3, temperature=1.2, stream=True
    )
    assert set(json.loads("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))) == set(cat)


class Cat(pydantic.BaseModel):
    legs: Literal[3, 4]
    mood: Literal["calm", "wild"]


def test_the_clients_own_parser_and_stream_helper_read_the_answer(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Cat, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Cat)
    with client.chat.completions.stream(model=MODEL, messages=ASK, response_format=Cat, max_tokens=60) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Cat)


def test_beside_tools_the_answer_is_json_or_a_call(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
    for seed in range(3):
        (choice,) = client.chat.completions.create(
            model=MODEL, messages=ASK, tools=tools, response_format=FORMAT, seed=seed, max_tokens=300
        ).choices
        if choice.finish_reason == "tool_calls":
            said = [c.function.arguments for c in choice.message.tool_calls or []]  # type: ignore[union-attr]
        else:
            assert choice.finish_reason == "stop"
            said = [choice.message.content or ""]
        for text in said:
            jsonschema.validate(json.loads(text), SCHEMA)


def test_a_grammar_holds_in_chat_and_completions(client: openai.OpenAI) -> None:
    extra = {"grammar": 'root ::= "yes" | "no"\n'}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=extra)
    assert answer.choices[0].message.content in ("yes", "no")
    assert answer.choices[0].finish_reason == "stop"
    text = client.completions.create(model=MODEL, prompt="Is it?", max_tokens=9, extra_body=extra).choices[0].text
    assert text in ("yes", "no")


def test_log_probabilities_reach_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=3, max_tokens=6, temperature=0
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(t.token for t in told.content) == answer.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob == t.logprob <= 0 for t in told.content)
    completion = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, logprobs=2, temperature=0)
    of_text = completion.choices[0].logprobs
    assert of_text is not None
    assert "".join(of_text.tokens or []) == completion.choices[0].text
    assert all(math.exp(p or 0) <= 1 for p in of_text.token_logprobs or [])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000}, "grammar"),
        ({"grammar": "x" * 2**20}, "grammar"),
        ({"grammar": "root ::= ((([a-z]{0,100}){0,100}){0,100}"}, "grammar"),
        ({"grammar": "root ::= root"}, "grammar"),
        ({"json_schema": {"type": "array", "contains": {}}}, "json_schema.contains"),
        ({"json_schema": {"$ref": "#"}}, "json_schema"),
        ({"json_schema": {"type": "object"}, "ignore_eos": True}, "ignore_eos"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"dry_sequence_breakers": ["x" * 100]}, "dry_sequence_breakers"),
    ],
)
def test_what_would_end_a_worker_is_a_400_and_the_engine_goes_on(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2, extra_body=fields)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert client.completions.create(model=MODEL, prompt="One", max_tokens=1).choices[0].text
