"""Requests are bounded in more than bytes: entries, levels, strings."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Code, RequestError
from cortex.dialects.bounds import Bounds, check, is_deeper
from cortex.dialects.openai_chat import OpenAIChat


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}] * 4}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(4)]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": deep(20)}}]}, "tools"),
        ({"chat_template_kwargs": deep(20)}, "chat_template_kwargs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": deep(20)}}},
            "response_format.json_schema.schema",
        ),
        ({"stop": ["a", "b", "c", "d"]}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 1000}}]}, "tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": "x" * 1000}}}},
            "response_format.json_schema.schema",
        ),
        ({"grammar": "root ::= " + '"x" ' * 200}, "grammar"),
    ],
)
def test_a_request_is_bounded_in_more_than_bytes(fields: dict[str, Any], param: str) -> None:
    bounds = Bounds(messages=3, tools=3, nesting=20, stop=3, schema_bytes=1000, grammar_bytes=500)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    check(OpenAIChat().read(orjson.dumps(body)).generation, bounds)
    with pytest.raises(RequestError) as caught:
        check(OpenAIChat().read(orjson.dumps({**body, **fields})).generation, bounds)
    assert caught.value.code is Code.INVALID_VALUE
    assert caught.value.param == param
    assert "at most" in caught.value.message


@pytest.mark.parametrize("levels", [10_000, 1_000_000])
def test_what_is_nested_beyond_reading_is_refused_by_name(levels: int) -> None:
    body = b'{"model":"m","messages":[{}],"tools":' + b"[" * levels + b"]" * levels + b"}"
    with pytest.raises(RequestError, match="nested too deeply") as caught:
        OpenAIChat().read(body)
    assert caught.value.code is Code.INVALID_JSON


@settings(max_examples=30)
@given(st.recursive(st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))
def test_levels_are_counted_as_one_does_by_hand(value: Any) -> None:
    def depth(part: Any) -> int:
        if not isinstance(part, dict | list):
            return 0
        return 1 + max((depth(p) for p in (part.values() if isinstance(part, dict) else part)), default=0)

    assert [is_deeper(value, n) for n in (0, 1, 2, 5)] == [depth(value) > n for n in (0, 1, 2, 5)]
