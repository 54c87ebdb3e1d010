"""Anthropic's endpoint with the official client and the demo model; prompts as they reach it."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron

MODEL = "smollm2"
PROFILE = {"id": MODEL, "source": DEMO_SOURCE, "context": 2048, "kv_tokens": 8192, "parallel": 4}
TOOL: Any = {
    "name": "clock",
    "description": "Tells the time.",
    "input_schema": {
        "type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"],
        "additionalProperties": False,
    },
}  # fmt: skip
ASK: Any = [{"role": "user", "content": "What time is it?"}]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Gateway]]:
    base = tmp_path_factory.mktemp("anthropic")
    with Neuron(base / "n", models=[PROFILE]) as neuron, Gateway(base / "g", neurons=[neuron]) as gateway:
        yield neuron, gateway


@pytest.fixture
def client(fleet: tuple[Neuron, Gateway]) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=fleet[1].url, api_key="none", max_retries=0) as opened:
        yield opened


def prompt(gateway: Gateway, **fields: Any) -> str:
    body = {"model": MODEL, **fields}
    return str(httpx.post(f"{gateway.url}/apply-template", json=body, timeout=30).raise_for_status().json()["prompt"])


def test_counting_and_tokenising_load_nothing(fleet: tuple[Neuron, Gateway], client: anthropic.Anthropic) -> None:
    neuron, gateway = fleet
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.").input_tokens
    rendered = prompt(gateway, messages=[{"role": "system", "content": "Be brief."}, *ASK])
    tokens = httpx.post(f"{gateway.url}/tokenize", json={"model": MODEL, "content": rendered}, timeout=30).json()
    assert len(tokens["tokens"]) == counted
    back = httpx.post(f"{gateway.url}/detokenize", json={"model": MODEL, **tokens}, timeout=30).json()
    assert back["content"] == rendered
    props = httpx.get(f"{gateway.url}/props?model={MODEL}", timeout=30).json()
    assert "<|im_start|>" in props["chat_template"]
    assert (props["default_generation_settings"]["n_ctx"], props["eos_token"]) == (2048, "<|im_end|>")
    assert neuron.status()["state"]["models"][0]["status"] == "unloaded"


def test_the_prompt_is_what_was_sent_and_nothing_else(fleet: tuple[Neuron, Gateway]) -> None:
    # The demo model's own template puts a system message of its own where there is none.
    spoken = [{"role": "system", "content": "  S\n"}, {"role": "user", "content": "two  spaces "}]
    expected = "<|im_start|>system\n  S\n<|im_end|>\n<|im_start|>user\ntwo  spaces <|im_end|>\n<|im_start|>assistant\n"
    assert prompt(fleet[1], messages=spoken) == expected
    assert prompt(fleet[1], messages=[{**spoken[0], "content": "  S \n"}, spoken[1]]) != expected, "the check can fail"


def test_a_template_without_a_place_for_tools_gets_them(fleet: tuple[Neuron, Gateway]) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": TOOL["input_schema"]}}
    text = prompt(fleet[1], messages=[{"role": "system", "content": "S"}, *ASK], tools=[tool])
    assert text.startswith("<|im_start|>system\nS\n\n# Tools")
    assert '"name": "clock"' in text
    assert "clock" not in prompt(fleet[1], messages=ASK, tools=[tool], tool_choice="none")


def test_the_sdk_gets_a_message_and_streams_the_same(client: anthropic.Anthropic) -> None:
    body: Any = {"model": MODEL, "max_tokens": 12, "messages": ASK, "system": "Be brief."}
    body["extra_body"] = {"temperature": 0}  # the SDK has no argument for it any more
    whole = client.messages.create(**body, thinking={"type": "adaptive"})
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    (block,) = whole.content
    assert block.type == "text"
    assert text == block.text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    read = final.usage.cache_read_input_tokens or 0
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.").input_tokens
    assert final.usage.input_tokens + read == counted


def test_a_loop_with_a_tool_brings_its_result_into_the_prompt(
    fleet: tuple[Neuron, Gateway], client: anthropic.Anthropic
) -> None:
    first = client.messages.create(
        model=MODEL, max_tokens=200, messages=ASK, tools=[TOOL],
        tool_choice={"type": "tool", "name": "clock", "disable_parallel_tool_use": True},
    )  # fmt: skip
    assert first.stop_reason == "tool_use"
    (call,) = first.content
    assert call.type == "tool_use"
    assert call.input in ({"zone": "UTC"}, {"zone": "CET"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "half past nine"}
    rounds: Any = [*ASK, {"role": "assistant", "content": [call.to_dict()]}, {"role": "user", "content": [result]}]
    second = client.messages.create(model=MODEL, max_tokens=8, messages=rounds, tools=[TOOL])
    assert second.usage.output_tokens > 0
    counted = client.messages.count_tokens(model=MODEL, messages=rounds, tools=[TOOL]).input_tokens
    without: Any = [*rounds[:-1], {"role": "user", "content": [{**result, "content": ""}]}]
    assert counted - client.messages.count_tokens(model=MODEL, messages=without, tools=[TOOL]).input_tokens >= 3


def test_a_forced_call_streams_as_events_the_sdk_understands(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=200, messages=ASK, tools=[TOOL], tool_choice={"type": "any"}
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason in ("tool_use", "max_tokens")
    assert final.content[0].type == "tool_use"


def test_errors_come_in_the_envelope_that_the_sdk_reads(client: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    for is_stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
            client.messages.create(model=MODEL, max_tokens=5, messages=long, stream=is_stream)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nope", max_tokens=5, messages=ASK)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_the_sdk_lists_the_models(client: anthropic.Anthropic) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).type == "model"
