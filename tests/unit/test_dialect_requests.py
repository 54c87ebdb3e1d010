"""Requests of the OpenAI dialects: what they become, and how a bad one is refused."""

from typing import Any

import orjson
import pytest

from common.errors import Code, RequestError
from common.messages import Chat, Text, TokenIds
from cortex.dialects.canonical import Generation, make_jobs
from cortex.dialects.contract import Dialect
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions

PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> Generation:
    """Read a chat request."""
    return OpenAIChat().read(orjson.dumps({"model": "m", "messages": HELLO, **fields})).generation


def completion(**fields: Any) -> Generation:
    """Read a completion request."""
    return OpenAICompletions().read(orjson.dumps({"model": "m", "prompt": "hello", **fields})).generation


def refusal(dialect: Dialect, body: bytes) -> RequestError:
    """Return the error of a request that must be refused."""
    with pytest.raises(RequestError) as caught:
        dialect.read(body)
    return caught.value


def refused_chat(**fields: Any) -> tuple[Code, str | None]:
    """Return code and field of the error of a chat request."""
    error = refusal(OpenAIChat(), orjson.dumps({"model": "m", "messages": HELLO, **fields}))
    return error.code, error.param


def refused_completion(**fields: Any) -> tuple[Code, str | None]:
    """Return code and field of the error of a completion request."""
    error = refusal(OpenAICompletions(), orjson.dumps({"model": "m", "prompt": "p", **fields}))
    return error.code, error.param


def jobs(generation: Generation) -> list[Any]:
    """Return the jobs, with ids that count."""
    ids = iter(f"id-{i}" for i in range(1000))
    return make_jobs(
        generation, model="real", request_id="r", principal="p", priority=7, budget_ms=5, new_id=lambda: next(ids)
    )


def test_messages_reach_the_template_exactly_as_they_were_written() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "  be brief\n", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "system", "content": "in the middle"},
        {"role": "assistant", "tool_calls": [{"id": "2", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "user", "content": "", "unknown": {"deep": [1, 2.5, None, True]}},
    ]
    assert chat(messages=messages).inputs == [Chat(messages=messages)]


def test_the_role_developer_is_system_for_templates() -> None:
    given = chat(messages=[{"role": "developer", "content": "x", "name": "n"}]).inputs[0]
    assert isinstance(given, Chat)
    assert given.messages == [{"role": "system", "content": "x", "name": "n"}]


def test_every_sampling_parameter_arrives() -> None:
    values = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "repeat_penalty": 1.1,
        "presence_penalty": -1.5, "frequency_penalty": 2,
    }  # fmt: skip
    sampling = chat(**values, stop=["a", "b"], logit_bias={"5": -100, "7": 3.5}).sampling
    assert {name: getattr(sampling, name) for name in values} == values
    assert (sampling.stop, sampling.logit_bias) == (["a", "b"], {5: -100.0, 7: 3.5})


def test_null_is_the_same_as_left_out() -> None:
    names = ["temperature", "top_p", "n", "stop", "seed", "max_tokens", "max_completion_tokens", "stream",
             "stream_options", "logit_bias", "tools", "response_format", "logprobs"]  # fmt: skip
    assert chat(**dict.fromkeys(names)) == chat()


def test_nothing_is_set_that_the_client_did_not_ask_for() -> None:
    generation = chat()
    assert (generation.n, generation.max_tokens, generation.is_stream) == (1, None, False)
    assert generation.sampling.temperature is None


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert chat(max_tokens=5).max_tokens == 5


def test_a_huge_limit_is_clamped_and_not_refused() -> None:
    assert chat(max_tokens=10**15).max_tokens == 2**31 - 1


def test_ignored_and_unknown_fields_do_not_matter() -> None:
    ignored = {"user": "u", "metadata": {"a": 1}, "service_tier": "auto", "store": True, "frobnicate": [1]}
    neutral = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"]}
    assert chat(**ignored, **neutral, logprobs=False, best_of=3) == chat()


def test_template_arguments_go_along() -> None:
    given = chat(chat_template_kwargs={"enable_thinking": False}).inputs[0]
    assert isinstance(given, Chat)
    assert given.template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"model": ""}, "model"),
        ({"tools": "f"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{**TOOL, "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{**TOOL, "function": {"name": "g", "parameters": []}}]}, "tools[0].function.parameters"),
        (
            {"tools": [{**TOOL, "function": {"name": "g", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "messages[0].content[0].image_url",
        ),
        ({"model": 5}, "model"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused_chat(**fields) == (Code.INVALID_VALUE, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ],
)
def test_a_field_that_is_missing_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused_chat(**fields) == (Code.MISSING_FIELD, param)


def test_tools_reach_the_template_as_they_were_written() -> None:
    given = chat(tools=[TOOL]).inputs[0]
    assert given == Chat(messages=HELLO, tools=[TOOL])
    named = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, parallel_tool_calls=False)
    assert named.inputs[0] == Chat(
        messages=HELLO, tools=[TOOL], tool_choice="required", tool_name="f", parallel_tool_calls=False
    )
    assert chat(tools=[TOOL], tool_choice="none").inputs[0] == Chat(messages=HELLO)


def test_effort_reaches_the_template_and_the_client_s_own_arguments_win() -> None:
    given = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}).inputs[0]
    assert isinstance(given, Chat)
    assert given.template_kwargs == {"enable_thinking": False, "thinking": True, "reasoning_effort": "low"}
    off = chat(reasoning_effort="none").inputs[0]
    assert isinstance(off, Chat)
    assert off.template_kwargs == {"enable_thinking": False, "thinking": False}


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_required_field_is_named(missing: str) -> None:
    body = {k: v for k, v in {"model": "m", "messages": HELLO}.items() if k != missing}
    error = refusal(OpenAIChat(), orjson.dumps(body))
    assert (error.code, error.param) == (Code.MISSING_FIELD, missing)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_what_does_nothing_yet_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused_chat(**fields) == (Code.UNSUPPORTED_PARAMETER, param)


def test_the_message_says_what_is_allowed() -> None:
    error = refusal(OpenAIChat(), orjson.dumps({"model": "m", "messages": HELLO, "temperature": -1}))
    assert "from 0 to 2" in error.message


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b'{"model": "m",', "byte 14"),
        (b"", "byte 0"),
        (b'{"model": nope}', "byte"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', "UTF-8"),
        (b'{"model": "m", "messages": ' + b'[{"a":' * 100_000, "nested"),
        (b'{"model": "m", "messages": [{}], "temperature": NaN}', "byte"),
    ],
)
def test_malformed_json_is_told_with_its_position(body: bytes, hint: str) -> None:
    error = refusal(OpenAIChat(), body)
    assert error.code is Code.INVALID_JSON
    assert hint in error.message


def test_a_body_that_is_no_object_is_refused() -> None:
    assert "object" in refusal(OpenAIChat(), b"[1, 2]").message


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", [Text(text="a")]),
        (["a", "b"], [Text(text="a"), Text(text="b")]),
        ([1, 2], [TokenIds(ids=[1, 2])]),
        ([[1], [2, 3]], [TokenIds(ids=[1]), TokenIds(ids=[2, 3])]),
    ],
)
def test_all_four_kinds_of_prompt_are_read(prompt: Any, inputs: list[Any]) -> None:
    assert completion(prompt=prompt).inputs == inputs


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, [2]], [[]], 5, [-1], [2**31]])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    code, param = refused_completion(prompt=prompt)
    assert (code, (param or "")[:6]) == (Code.INVALID_VALUE, "prompt")


def test_a_completion_has_16_tokens_unless_told_otherwise() -> None:
    assert (completion().max_tokens, completion(max_tokens=3).max_tokens) == (16, 3)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"suffix": "x", "prompt": [1]}, Code.INVALID_VALUE, "suffix"),
        ({"suffix": "x", "echo": True}, Code.INVALID_VALUE, "echo"),
        ({"best_of": 2}, Code.UNSUPPORTED_PARAMETER, "best_of"),
        ({"logprobs": 6}, Code.INVALID_VALUE, "logprobs"),
        ({"prompt": [1, 2], "echo": True}, Code.INVALID_VALUE, "echo"),
        ({"prompt": ["x"] * 20, "n": 16}, Code.INVALID_VALUE, "prompt"),
    ],
)
def test_completions_refuse_what_they_cannot_do(fields: dict[str, Any], code: Code, param: str) -> None:
    assert refused_completion(**fields) == (code, param)


def test_n_answers_are_n_jobs_of_one_group_with_rising_seeds() -> None:
    made = jobs(chat(n=3, seed=40))
    assert [j.sampling.seed for j in made] == [40, 41, 42]
    assert len({j.id for j in made}) == 3
    assert len({j.group for j in made}) == 1
    assert made[0].group is not None
    assert {(j.model, j.request_id, j.principal, j.priority, j.budget_ms, j.attempt) for j in made} == {
        ("real", "r", "p", 7, 5, 0)
    }


def test_without_a_seed_every_answer_is_drawn_freely() -> None:
    assert [j.sampling.seed for j in jobs(chat(n=2))] == [None, None]


def test_one_job_has_no_group() -> None:
    assert jobs(chat())[0].group is None


def test_answers_to_one_prompt_stand_together() -> None:
    made = jobs(completion(prompt=["a", "b"], n=2))
    assert [j.input.text for j in made] == ["a", "a", "b", "b"]
