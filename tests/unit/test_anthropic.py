"""Anthropic's dialect: what a request becomes, and what recorded events become."""

from typing import Any

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st

from common.errors import Code, RequestError, overflow
from common.messages import Chat, EndedItem, JsonSchema, StartedItem
from cortex.api import errors
from cortex.dialects.anthropic_messages import AnthropicMessages, MessageRequest
from cortex.dialects.anthropic_models import anthropic_list
from cortex.dialects.contract import Heading
from cortex.fleet.contract import Events, Merged

HEADING = Heading(id="42", model="real", created=1234)
ASK: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}
BILLING = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=a1b2c;"


def read(*, normalizes_stamp: bool = True, **fields: Any) -> MessageRequest:
    body = {"model": "m", "max_tokens": 5, "messages": ASK, **fields}
    return AnthropicMessages(normalizes_stamp=normalizes_stamp).read(orjson.dumps(body))


def chat(**fields: Any) -> Chat:
    (given,) = read(**fields).generation.inputs
    assert isinstance(given, Chat)
    return given


def refused(**fields: Any) -> tuple[Code, str | None]:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def started(format_: str = "", *, is_open: bool = False) -> StartedItem:
    return StartedItem(
        job="j", attempt=0, prompt_tokens=7, cached_tokens=3, max_tokens=9, format=format_, thinking_open=is_open
    )


def ended(reason: Any = "stop", stop_sequence: str | None = None) -> EndedItem:
    return EndedItem(
        job="j", attempt=0, total=4, reason=reason, stop_sequence=stop_sequence, prompt_tokens=7, cached_tokens=3
    )


def call(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": [1, "é"]}}}}\n</tool_call>'


STREAMS: dict[str, tuple[list[Any], list[str], str]] = {
    "text": ([started(), "Hel", "lo", ended()], ["text"], "end_turn"),
    "empty": ([started(), ended()], [], "end_turn"),
    "reasoning then text": (
        [started("think+hermes", is_open=True), "so", " it is</thi", "nk>\n\n4", "2", ended()],
        ["thinking", "text"],
        "end_turn",
    ),
    "text then tool": ([started("+hermes"), "I look.\n" + call("f"), ended()], ["text", "tool_use"], "tool_use"),
    "two tools": ([started("+hermes"), *call("f"), "\n", *call("g"), ended()], ["tool_use", "tool_use"], "tool_use"),
    "tool only": ([started("+hermes"), *call("f"), ended()], ["tool_use"], "tool_use"),
    "resumed": (
        [started("think+hermes", is_open=True), Merged("a b", 3), "c</think>", "d", ended()],
        ["thinking", "text"],
        "end_turn",
    ),
    "cut in thinking": ([started("think+hermes", is_open=True), "half a", ended("length")], ["thinking"], "max_tokens"),
    "cut in a call": ([started("+hermes"), call("f")[:30], ended("length")], ["text"], "max_tokens"),
    "stop string": ([started(), "a", ended("stop_sequence", "X")], ["text"], "stop_sequence"),
}


def fold(data: bytes) -> dict[str, Any]:
    """Put a stream together as a client does, and hold it to the order of events."""
    message: dict[str, Any] = {}
    has_stopped = False
    for frame in data.decode().split("\n\n")[:-1]:
        head, _, line = frame.partition("\n")
        event = orjson.loads(line.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        assert not has_stopped
        match event["type"]:
            case "message_start":
                assert not message
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "partial": ""})
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                name = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(
                    delta["type"], "partial"
                )
                block[name] += delta[name if name != "partial" else "partial_json"]
            case "content_block_stop":
                block = message["content"][event["index"]]
                partial = block.pop("partial")
                if block["type"] == "tool_use":
                    block["input"] = orjson.loads(partial)
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
            case "message_stop":
                has_stopped = True
            case kind:
                assert kind == "ping"
    assert has_stopped
    return message


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_and_a_body_of_the_same_events_agree(name: str) -> None:
    items, kinds, reason = STREAMS[name]
    events: Events = [(0, item) for item in items]
    request = read(tools=[TOOL])
    stream, body = request.stream(HEADING), request.body(HEADING)
    data = b"".join(stream.feed([event]) for event in events)
    body.feed(events)
    assert stream.is_complete
    whole = orjson.loads(body.render())
    assert fold(data) == whole
    assert [b["type"] for b in whole["content"]] == kinds
    assert whole["stop_reason"] == reason
    assert whole["stop_sequence"] == ("X" if name == "stop string" else None)
    assert whole["usage"] == {
        "input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": 4,
    }  # fmt: skip


PIECES = ["<think>", "</think>", "a\n", "é", "<tool", "_call>", *call("f"), call("g")]


@hypothesis.given(pieces=st.lists(st.sampled_from(PIECES)), format_=st.sampled_from(["", "+hermes", "think+hermes"]),
       is_open=st.booleans(), is_cut=st.booleans())  # fmt: skip
def test_folding_any_stream_gives_the_body(pieces: list[str], format_: str, is_open: bool, is_cut: bool) -> None:
    begin = started(format_, is_open=is_open and format_ == "think+hermes")
    items: list[Any] = [begin, *pieces, ended("length" if is_cut else "stop")]
    events: Events = [(0, item) for item in items]
    request = read(tools=[TOOL, {**TOOL, "name": "g"}])
    stream, body = request.stream(HEADING), request.body(HEADING)
    data = b"".join(stream.feed([event]) for event in events)
    body.feed(events)
    assert fold(data) == orjson.loads(body.render())


def test_without_tools_what_looks_like_a_call_is_text() -> None:
    stream = read().stream(HEADING)
    message = fold(stream.feed([(0, started()), (0, call("f")), (0, ended())]))
    assert [b["text"] for b in message["content"]] == [call("f")]


def test_a_failure_in_mid_stream_is_an_error_event_and_the_last() -> None:
    stream = read(stream=True).stream(HEADING)
    stream.feed([(0, started()), (0, "a")])
    data = stream.fail(errors.to_anthropic(RequestError(Code.WORKER_DIED, "gone"), "r"))
    assert data.startswith(b"event: error\n")
    assert orjson.loads(data.split(b"data: ")[1])["error"]["type"] == "overloaded_error"
    assert not stream.is_complete


def test_pings_come_in_anthropic_s_form_once_the_message_has_begun() -> None:
    stream = read(stream=True).stream(HEADING)
    assert stream.ping().startswith(b":")
    stream.feed([(0, started())])
    assert stream.ping() == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_a_conversation_with_tools_becomes_chat_messages() -> None:
    messages = [
        {"role": "user", "content": [
            {"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"q": "é"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}], "is_error": True},
            {"type": "text", "text": "and?"}]},
        {"role": "system", "content": "in the middle"},
    ]  # fmt: skip
    given = chat(
        messages=messages, system="be brief", tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    )
    assert given.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"q": "é"}'}}]},
        {"role": "tool", "tool_call_id": "t1", "content": "42", "is_error": True},
        {"role": "user", "content": "and?"},
        {"role": "system", "content": "in the middle"},
    ]  # fmt: skip
    function = {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}
    assert given.tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", None, False)),
        ({"type": "tool", "name": "f"}, ("required", "f", True)),
    ],
)
def test_each_tool_choice_has_its_meaning(choice: dict[str, Any], expected: tuple[str, str | None, bool]) -> None:
    given = chat(tools=[TOOL], tool_choice=choice)
    assert (given.tool_choice, given.tool_name, given.parallel_tool_calls) == expected


def test_the_choice_none_offers_nothing() -> None:
    assert chat(tools=[TOOL], tool_choice={"type": "none"}).tools == []


def test_thinking_and_effort_reach_the_template() -> None:
    given = chat(thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert given.template_kwargs == {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}
    assert chat(thinking={"type": "disabled"}).template_kwargs == {"enable_thinking": False, "thinking": False}
    assert chat(thinking={"type": "enabled", "budget_tokens": 1024}).template_kwargs["enable_thinking"] is True


def test_a_format_holds_the_answer_also_beside_tools() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    generation = read(tools=[TOOL], output_config={"format": form}).generation
    assert generation.constraint == JsonSchema(schema={"type": "object"})
    assert generation.constraint_field == "output_config.format.schema"


def test_only_the_checksum_of_the_billing_line_is_made_constant() -> None:
    blocks = [{"type": "text", "text": BILLING}, {"type": "text", "text": "You may say cch=a1b2c."}]

    def texts(**settings: Any) -> list[str]:
        return [p["text"] for p in chat(system=blocks, **settings).messages[0]["content"]]

    assert texts() == [BILLING.replace("a1b2c", "00000"), "You may say cch=a1b2c."]
    assert texts(normalizes_stamp=False) == [BILLING, "You may say cch=a1b2c."]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields) == (Code.INVALID_VALUE, param)


def test_what_cannot_be_read_is_refused_by_name() -> None:
    document = [{"role": "user", "content": [{"type": "document", "source": {}}]}]
    assert refused(messages=document) == (Code.UNSUPPORTED_PARAMETER, "messages[0].content[0].type")
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    image = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    assert refused(messages=image) == (Code.UNSUPPORTED_PARAMETER, "messages[0].content[0].source")
    bad = [{"role": "user", "content": [{"type": "image", "source": {**source, "data": "?"}}]}]
    assert refused(messages=bad) == (Code.INVALID_VALUE, "messages[0].content[0].source")
    for form, code, param in (
        ({}, Code.MISSING_FIELD, "type"), ({"type": "text"}, Code.INVALID_VALUE, "type"),
        ({"type": "json_schema"}, Code.MISSING_FIELD, "schema"),
        ({"type": "json_schema", "schema": []}, Code.INVALID_VALUE, "schema"),
    ):  # fmt: skip
        assert refused(output_config={"format": form}) == (code, f"output_config.format.{param}")


def test_an_overflow_has_the_words_at_which_clients_compact() -> None:
    body = orjson.loads(errors.to_anthropic(overflow("more than 9000", 8192), "r"))
    assert body["error"] == {
        "type": "invalid_request_error",
        "message": "prompt is too long: 9000 tokens > 8192 maximum",
    }


def test_models_are_listed_in_anthropic_s_shape() -> None:
    entry = {"id": "a/b", "created": 0, "meta": {"n_ctx": 8}}
    listed = anthropic_list([entry, {**entry, "id": "c"}])
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a/b", "c", False)
    assert listed["data"][0]["created_at"] == "1970-01-01T00:00:00Z"
    assert anthropic_list([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}
