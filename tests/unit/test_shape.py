"""What a gateway sends as a conversation is checked before anything reads it."""

from typing import Any

import pytest

from common.errors import Code, RequestError
from common.messages import Chat
from neuron.prep.shape import check_shape

USER: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_what_dialects_make_is_taken() -> None:
    turn = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    result = {"role": "tool", "content": "r", "tool_call_id": "c", "is_error": True}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    check_shape(Chat(messages=[*turn, result], tools=tools, template_kwargs={"depth": [1, 0.5, None, True]}))


@pytest.mark.parametrize(
    ("messages", "tools", "param"),
    [
        ([{"content": "hi"}], [], "messages"),
        ([{"role": 5}], [], "messages"),
        ([{**USER, "tool_calls": "f"}], [], "messages"),
        ([{**USER, "tool_calls": ["f"]}], [], "messages"),
        ([{**USER, "tool_calls": [{**CALL, "id": [1]}]}], [], "messages"),
        ([{"role": "tool", "content": "r", "tool_call_id": ["c"]}], [], "messages"),
        ([{**USER, "content": b"bytes"}], [], "messages"),
        ([{**USER, "content": {5: "five"}}], [], "messages"),
        ([USER], [{"type": "function"}], "tools"),
        ([USER], [{"function": {"name": None}}], "tools"),
        ([USER], [{"function": {"name": "f", "parameters": [1]}}], "tools"),
    ],
)
def test_what_nothing_here_could_read_is_refused_by_name(messages: list[Any], tools: list[Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_shape(Chat(messages=messages, tools=tools))
    assert (caught.value.code, caught.value.param) == (Code.INVALID_VALUE, param)
