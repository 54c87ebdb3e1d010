"""Tools with the demo model: it is too weak to call anything by itself, so what it must call it is made to."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.schemas import SCHEMAS, TEXT, thing

MODEL = "smollm2"
PROFILE = {"id": MODEL, "source": DEMO_SOURCE, "context": 2048, "kv_tokens": 16384, "parallel": 8}
PROMPTS = ["Call the function.", "What is the weather in Zürich?", "Buy three books and a pen.",
           "Schreibe eine E-Mail.", "17 * 23?"]  # fmt: skip


def tool(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "A function.", "parameters": schema}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("tools")
    with (
        Neuron(base / "n", models=[PROFILE], preload=[MODEL]) as neuron,
        Gateway(base / "g", neurons=[neuron]) as started,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
        yield started


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.openai() as opened:
        yield opened


def ask(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        **{"model": MODEL, "messages": messages, "max_tokens": 512, "seed": 3, **fields}
    ).choices[0]


@pytest.mark.timeout(600)
def test_forced_arguments_fit_the_schema_or_are_cut_off(client: openai.OpenAI) -> None:
    is_long = bool(os.environ.get("HELEXA_LONG"))
    prompts, numbers = (PROMPTS, range(len(SCHEMAS))) if is_long else (PROMPTS[:1], range(0, len(SCHEMAS), 3))

    def check(case: tuple[int, str]) -> str:
        number, prompt = case
        tools = [tool(f"f{number}", SCHEMAS[number]), tool("other", thing(x=TEXT))]
        choice = {"type": "function", "function": {"name": f"f{number}"}}
        answer = ask(client, prompt, tools=tools, tool_choice=choice)
        if answer.finish_reason == "tool_calls":
            (call,) = answer.message.tool_calls
            assert call.function.name == f"f{number}"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[number])
        return str(answer.finish_reason)

    cases = [(n, p) for n in numbers for p in prompts]
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(check, cases))
    print({end: ends.count(end) for end in sorted(set(ends))})
    assert set(ends) <= {"tool_calls", "length"}
    assert ends.count("length") <= len(cases) // 10


def test_required_calls_one_of_the_tools(client: openai.OpenAI) -> None:
    tools = [tool("a", thing(x={"type": "integer"})), tool("b", thing())]
    answer = ask(client, "Go.", tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name in ("a", "b")


def test_a_forced_call_streams_as_it_is_answered_whole(client: openai.OpenAI) -> None:
    tools = [tool("a", thing(x={"type": "integer", "maximum": 99, "minimum": 0}))]
    fields: dict[str, Any] = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    whole = ask(client, "Go.", **fields).message.tool_calls[0].function
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Go."}], max_tokens=512, **fields
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    streamed = final.message.tool_calls[0].function
    assert (streamed.name, streamed.arguments) == (whole.name, whole.arguments)


def test_the_result_of_a_tool_is_part_of_the_next_prompt(client: openai.OpenAI) -> None:
    tools = [tool("clock", thing())]
    first = ask(client, "What time is it?", tools=tools, tool_choice="required", parallel_tool_calls=False)
    messages: list[Any] = [
        {"role": "user", "content": "What time is it?"},
        first.message.to_dict(),
        {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": "x"},
    ]
    short = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, max_tokens=4)  # type: ignore[arg-type]
    messages[-1]["content"] = "x " * 100
    long = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, max_tokens=4)  # type: ignore[arg-type]
    assert short.usage is not None
    assert long.usage is not None
    assert long.usage.prompt_tokens - short.usage.prompt_tokens >= 90


def test_a_schema_that_cannot_be_enforced_is_a_clear_error(client: openai.OpenAI) -> None:
    tools = [tool("f", thing(x={"type": "string", "pattern": "(?=a)"}))]
    with pytest.raises(openai.BadRequestError, match=r"tools\.f"):
        ask(client, "Go.", tools=tools, tool_choice="required")
