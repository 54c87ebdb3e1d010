"""OpenAI's Responses with the official client and the demo model."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron

MODEL = "smollm2"
PROFILE = {"id": MODEL, "source": DEMO_SOURCE, "context": 2048, "kv_tokens": 8192, "parallel": 4}
TOOL: Any = {
    "type": "function",
    "name": "clock",
    "description": "Tells the time.",
    "strict": True,
    "parameters": {
        "type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"],
        "additionalProperties": False,
    },
}  # fmt: skip
ASK: Any = [{"role": "user", "content": "What time is it?"}]


class Cat(pydantic.BaseModel):
    legs: Literal[3, 4]
    mood: Literal["calm", "wild"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("responses")
    with Neuron(base / "n", models=[PROFILE]) as neuron, Gateway(base / "g", neurons=[neuron]) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.openai() as opened:
        yield opened


def test_the_sdk_gets_a_response_and_streams_the_same(client: openai.OpenAI) -> None:
    body: Any = {"model": MODEL, "input": "Say hello.", "instructions": "Be brief.", "max_output_tokens": 60}
    # An end of its own, as the SDK takes no cut one for final; a seed, for the same text both times.
    body["extra_body"] = {"stop": [".", "!", "?", ","], "seed": 1}
    whole = client.responses.create(**body, temperature=0)
    with client.responses.stream(**body, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert whole.output_text
    assert (text, final.output_text, final.status) == (whole.output_text, whole.output_text, whole.status)
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.total_tokens == whole.usage.total_tokens
    counted = client.responses.input_tokens.count(model=MODEL, input=body["input"], instructions=body["instructions"])
    assert counted.input_tokens == whole.usage.input_tokens


def test_parse_gives_what_the_schema_describes(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input="Describe a cat.", text_format=Cat, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Cat)


def test_a_loop_with_a_tool_brings_its_result_into_the_prompt(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input=ASK, tools=[TOOL], max_output_tokens=200, parallel_tool_calls=False,
        tool_choice={"type": "function", "name": "clock"},
    )  # fmt: skip
    (call,) = response.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["zone"] in ("UTC", "CET")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "half past nine"}
    items: Any = [*ASK, call.to_dict(), result]
    last = client.responses.create(model=MODEL, input=items, tools=[TOOL], max_output_tokens=8)
    assert last.usage is not None
    assert last.usage.output_tokens > 0
    count: Any = client.responses.input_tokens.count
    empty = [{**item, "output": ""} if item.get("type") == "function_call_output" else item for item in items]
    assert last.usage.input_tokens == count(model=MODEL, input=items, tools=[TOOL]).input_tokens
    assert last.usage.input_tokens - count(model=MODEL, input=empty, tools=[TOOL]).input_tokens >= 3


def test_a_forced_call_streams_as_events_the_sdk_understands(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_output_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert final.output[-1].type == "function_call"


def test_the_prompt_is_what_was_sent_and_nothing_else(gateway: Gateway, client: openai.OpenAI) -> None:
    # Tokens of the same conversation through the endpoint that shows the prompt itself.
    spoken = [{"role": "system", "content": "  S\n"}, {"role": "user", "content": "two  spaces "}]
    shown = httpx.post(f"{gateway.url}/apply-template", json={"model": MODEL, "messages": spoken}, timeout=30).json()
    expected = "<|im_start|>system\n  S\n<|im_end|>\n<|im_start|>user\ntwo  spaces <|im_end|>\n<|im_start|>assistant\n"
    assert shown["prompt"] == expected
    listed = httpx.post(f"{gateway.url}/tokenize", json={"model": MODEL, "content": expected}, timeout=30).json()
    count: Any = client.responses.input_tokens.count
    assert count(model=MODEL, input="two  spaces ", instructions="  S\n").input_tokens == len(listed["tokens"])
    assert count(model=MODEL, input="two  spaces  x", instructions="  S\n").input_tokens != len(listed["tokens"])


def test_an_answer_that_meets_its_limit_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Count to a hundred.", max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_an_overflow_is_400_or_a_failed_response(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="word " * 3000)
    assert caught.value.code == "context_length_exceeded"
    last = list(client.responses.create(model=MODEL, input="word " * 3000, stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "context_length_exceeded"  # type: ignore[comparison-overlap]
