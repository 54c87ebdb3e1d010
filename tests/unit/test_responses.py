"""OpenAI's Responses: what a request becomes, and what recorded events become."""

from typing import Any

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from common.errors import Code, RequestError, overflow
from common.messages import Chat, EndedItem, JsonObject, JsonSchema, Likelihood, StartedItem, TokenLogprob
from cortex.api import errors
from cortex.dialects.contract import Heading
from cortex.dialects.openai_responses import OpenAIInputTokens, OpenAIResponses, ResponseRequest
from cortex.fleet.contract import Events, Merged, Told

HEADING = Heading(id="42", model="real", created=1234)
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
PNG = "data:image/png;base64,iVBORw0KGgo="
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
"""The official client's own idea of an event."""


def read(**fields: Any) -> ResponseRequest:
    return OpenAIResponses().read(orjson.dumps({"model": "m", "input": "hi", **fields}))


def chat(**fields: Any) -> Chat:
    (conversation,) = read(**fields).generation.inputs
    assert isinstance(conversation, Chat)
    return conversation


def refused(**fields: Any) -> tuple[Code, str | None]:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


def started(format_: str = "", *, is_open: bool = False) -> StartedItem:
    return StartedItem(
        job="j", attempt=0, prompt_tokens=7, cached_tokens=3, max_tokens=9, format=format_, thinking_open=is_open
    )


def ended(total: int, reason: Any = "stop") -> EndedItem:
    return EndedItem(job="j", attempt=0, total=total, reason=reason, prompt_tokens=7, cached_tokens=3)


def call(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": [1, "é"]}}}}\n</tool_call>'


THINKS = "think+hermes"
STREAMS: dict[str, tuple[list[Any], list[str], str, int]] = {
    # events → the items of the output, the response's status, tokens of reasoning
    "text": ([started(), "Hel", "lo", ended(2)], ["message"], "completed", 0),
    "empty": ([started(), ended(0)], [], "completed", 0),
    "reasoning then text": (
        [started(THINKS, is_open=True), "so", " it is</thi", "nk>\n\n4", "2", ended(4)],
        ["reasoning", "message"], "completed", 3,
    ),
    "reasoning then tool": (
        [started(THINKS), "<think>", "hm", "</think>", "\n", *call("f"), ended(50)],
        ["reasoning", "function_call"], "completed", 3,
    ),
    "text then tool": (
        [started("+hermes"), "I look.\n" + call("f"), ended(9)], ["message", "function_call"], "completed", 0),
    "tool only": ([started("+hermes"), *call("f"), ended(9)], ["function_call"], "completed", 0),
    "two tools": (
        [started("+hermes"), *call("f"), "\n", *call("g"), ended(9)], ["function_call"] * 2, "completed", 0),
    "cut in thinking": (
        [started(THINKS, is_open=True), "half", " a", ended(2, "length")], ["reasoning"], "incomplete", 2),
    "cut in a call": ([started("+hermes"), call("f")[:30], ended(9, "length")], ["message"], "incomplete", 0),
    "stop string": ([started(), "a", ended(1, "stop_sequence")], ["message"], "completed", 0),
    "resumed": ([started(THINKS, is_open=True), Merged("a b", 3), "c</think>", "d", ended(5)],
                ["reasoning", "message"], "completed", 4),
}  # fmt: skip


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Return a stream's events, held to the form of the wire and to their numbers."""
    out = []
    for number, frame in enumerate(data.decode().split("\n\n")[:-1]):
        head, _, line = frame.partition("\n")
        event = orjson.loads(line.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        assert event["sequence_number"] == number
        out.append(event)
    return out


def fold(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the output together from what was added and said, as a client does, and hold it to each `done`."""
    output: list[dict[str, Any]] = []
    for event in events:
        item: dict[str, Any] = output[event["output_index"]] if "item_id" in event else {}
        assert item.get("id") == event.get("item_id")
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(output)
                assert event["item"]["status"] == "in_progress"
                output.append(event["item"])
            case "content_part.added":
                item["content"].append(event["part"])
            case "output_text.delta":
                part = item["content"][event["content_index"]]
                part["text"] += event["delta"]
                part["logprobs"] += event["logprobs"]
            case "output_text.done":
                assert event["text"] == item["content"][0]["text"]
            case "content_part.done":
                assert event["part"] == item["content"][0]
            case "reasoning_summary_part.added":
                item["summary"].append(event["part"])
            case "reasoning_summary_text.delta":
                item["summary"][event["summary_index"]]["text"] += event["delta"]
            case "reasoning_summary_text.done":
                assert event["text"] == item["summary"][0]["text"]
            case "reasoning_summary_part.done":
                assert event["part"] == item["summary"][0]
            case "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            case "function_call_arguments.done":
                assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
            case "output_item.done":
                assert {**event["item"], "status": "in_progress"} == output[event["output_index"]]
                output[event["output_index"]] = event["item"]
            case kind:
                assert kind in ("created", "in_progress", "completed", "incomplete")
    return output


def check_agreement(items: list[Any], **fields: Any) -> dict[str, Any]:
    """Stream events, and write the same ones whole; return what both say."""
    events: Events = [(0, item) for item in items]
    request = read(tools=[TOOL, {**TOOL, "name": "g"}], **fields)
    stream, body = request.stream(HEADING), request.body(HEADING)
    made = events_of(b"".join(stream.feed([event]) for event in events))
    body.feed(events)
    assert stream.is_complete
    assert body.is_complete
    whole: dict[str, Any] = orjson.loads(body.render())
    assert [e["type"] for e in made[:2]] == ["response.created", "response.in_progress"]
    assert made[-1]["type"] == f"response.{whole['status']}"
    assert made[-1]["response"] == whole
    assert fold(made) == whole["output"]
    for event in made:
        EVENT.validate_python(event, strict=True)
    Response.model_validate(whole, strict=True)
    return whole


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_and_a_body_of_the_same_events_agree(name: str) -> None:
    items, kinds, status, reasoning = STREAMS[name]
    whole = check_agreement(items)
    assert [item["type"] for item in whole["output"]] == kinds
    assert whole["status"] == status
    assert whole["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)
    total = items[-1].total
    assert whole["usage"] == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": total, "output_tokens_details": {"reasoning_tokens": reasoning}, "total_tokens": 7 + total,
    }  # fmt: skip
    if status == "incomplete":
        assert whole["output"][-1]["status"] == "incomplete"


PIECES = ["<think>", "</think>", "a\n", "é", "<tool", "_call>", *call("f"), call("g")]


@hypothesis.settings(max_examples=40)  # each event is held to the client's types
@hypothesis.given(pieces=st.lists(st.sampled_from(PIECES)), format_=st.sampled_from(["", "+hermes", THINKS]),
                  is_open=st.booleans(), is_cut=st.booleans())  # fmt: skip
def test_folding_any_stream_gives_the_body(pieces: list[str], format_: str, is_open: bool, is_cut: bool) -> None:
    end = ended(len(pieces), "length" if is_cut else "stop")
    check_agreement([started(format_, is_open=is_open and format_ == THINKS), *pieces, end])


def test_calls_have_ids_of_their_own_and_their_arguments() -> None:
    whole = check_agreement(STREAMS["two tools"][0])
    first, second = whole["output"]
    assert (first["name"], second["name"]) == ("f", "g")
    assert orjson.loads(first["arguments"]) == {"a": [1, "é"]}
    assert first["call_id"] != second["call_id"]


def test_without_tools_what_looks_like_a_call_is_text() -> None:
    body = read().body(HEADING)
    body.feed([(0, started()), (0, call("f")), (0, ended(1))])
    assert orjson.loads(body.render())["output"][0]["content"][0]["text"] == call("f")


def test_only_one_call_where_parallel_ones_are_not_wanted() -> None:
    assert len(check_agreement(STREAMS["two tools"][0], parallel_tool_calls=False)["output"]) == 1


def test_log_probabilities_stand_beside_the_text_they_belong_to() -> None:
    def told(text: str) -> Told:
        return Told(text, [TokenLogprob(Likelihood(text.encode(), -0.5), [Likelihood(b"x", -0.25)])])

    items = [started(THINKS, is_open=True), told("hm"), told("</think>"), told("4"), told("2"), ended(4)]
    whole = check_agreement(items, include=["message.output_text.logprobs"], top_logprobs=1)
    (part,) = whole["output"][1]["content"]
    assert [entry["token"] for entry in part["logprobs"]][-2:] == ["4", "2"]
    assert part["logprobs"][-1] == {
        "token": "2", "logprob": -0.5, "bytes": [50],
        "top_logprobs": [{"token": "x", "logprob": -0.25, "bytes": [120]}],
    }  # fmt: skip


@pytest.mark.parametrize("before", [[], [started()], [started(), "Hel"]])
def test_a_failure_is_a_failed_response_and_the_last_event(before: list[Any]) -> None:
    stream = read(stream=True).stream(HEADING)
    data = b"".join(stream.feed([(0, item)]) for item in before)
    data += stream.fail(errors.to_openai(overflow("20", 10)))
    made = events_of(data)
    assert made[0]["type"] == "response.created"
    assert made[-1]["type"] == "response.failed"
    response = made[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "context_length_exceeded")
    assert "maximum context length is 10 tokens" in response["error"]["message"]
    assert [item["status"] for item in response["output"]] == ["incomplete"] * (len(before) // 2)
    assert not stream.is_complete


def test_silence_is_filled_with_comments() -> None:
    assert read(stream=True).stream(HEADING).ping().startswith(b":")


def test_text_that_looks_like_framing_stays_text() -> None:
    text = 'x\n\ndata: %s %d {"a": "\u2028\x00"} 🙂'
    whole = check_agreement([started(), text, ended(1)])
    assert whole["output"][0]["content"][0]["text"] == text


def test_a_conversation_of_items_becomes_chat_messages() -> None:
    items = [
        {"role": "developer", "content": [
            {"type": "input_text", "text": "be "}, {"type": "input_text", "text": "kind"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a "}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
         "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"q": "é"}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "43"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}],
         "content": [{"type": "reasoning_text", "text": "long"}]},
        {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": ""},
        {"role": "assistant", "content": "So."},
        {"role": "assistant", "content": "And so."},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    functions = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, name, arguments in ((1, "f", '{"q": "é"}'), (2, "g", "{}"), (3, "f", "{}"))
    ]
    assert chat(input=items, instructions="I").messages == [
        {"role": "system", "content": "I"},
        {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "user", "content": "a "},
        {"role": "assistant", "reasoning_content": "hm", "content": "I look.", "tool_calls": functions[:2]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "tool", "tool_call_id": "c2", "content": "43"},
        {"role": "assistant", "reasoning_content": "long", "content": "", "tool_calls": functions[2:]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "assistant", "content": "So."},
        {"role": "assistant", "content": "And so."},
        {"role": "user", "content": "and?"},
    ]


def test_a_text_is_the_users() -> None:
    assert chat(input="  two  ").messages == [{"role": "user", "content": "  two  "}]


def test_what_was_streamed_can_be_sent_back() -> None:
    output = check_agreement(STREAMS["reasoning then tool"][0])["output"]
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "9"}
    _, assistant, tool = chat(input=[{"role": "user", "content": "?"}, *output, result]).messages
    assert (assistant["reasoning_content"], assistant["tool_calls"][0]["function"]["name"]) == ("hm", "f")
    assert tool["tool_call_id"] == assistant["tool_calls"][0]["id"]


def test_tools_of_other_types_are_skipped() -> None:
    given = chat(tools=[{"type": "web_search"}, TOOL, {"type": "namespace", "name": "n", "tools": [{}]},
                        {"type": "custom", "name": "f"}, {"type": "local_shell"}])  # fmt: skip
    function = {"name": "f", "description": "d", "parameters": TOOL["parameters"]}
    assert given.tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", ("auto", None, ["f", "g"])),
        ("required", ("required", None, ["f", "g"])),
        ("none", ("auto", None, [])),
        ({"type": "function", "name": "g"}, ("required", "g", ["f", "g"])),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
            ("required", None, ["g"]),
        ),
    ],
)
def test_each_tool_choice_has_its_meaning(choice: Any, expected: tuple[str, str | None, list[str]]) -> None:
    given = chat(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert (given.tool_choice, given.tool_name, [t["function"]["name"] for t in given.tools]) == expected


def test_a_format_holds_the_answer() -> None:
    form = {"type": "json_schema", "name": "n", "strict": True, "schema": {"type": "object"}}
    generation = read(text={"format": form, "verbosity": "low"}).generation
    assert generation.constraint == JsonSchema(schema={"type": "object"})
    assert generation.constraint_field == "text.format.schema"
    assert read(text={"format": {"type": "json_object"}}).generation.constraint == JsonObject()
    assert read(text={"format": {"type": "json_object"}}, tools=[TOOL]).generation.constraint == JsonObject()
    assert read(text={"format": {"type": "text"}}).generation.constraint is None
    assert read(text={}).generation.constraint is None


def test_sampling_limits_and_effort_act() -> None:
    request = read(temperature=0.5, top_p=0.9, top_k=7, seed=3, max_output_tokens=99, reasoning={"effort": "low"},
                   stream=True)  # fmt: skip
    generation = request.generation
    assert (generation.sampling.temperature, generation.sampling.top_p, generation.sampling.top_k) == (0.5, 0.9, 7)
    assert (generation.sampling.seed, generation.max_tokens, generation.is_stream) == (3, 99, True)
    assert chat(reasoning={"effort": "low", "summary": "auto"}).template_kwargs["reasoning_effort"] == "low"


def test_what_codex_sends_is_taken() -> None:
    read(stream=True, store=False, prompt_cache_key="k", client_metadata={"a": "b"}, parallel_tool_calls=True,
         include=["reasoning.encrypted_content"], reasoning={"summary": "auto"}, tool_choice="auto",
         previous_response_id=None, truncation="auto", service_tier="auto", metadata={}, unheard="of")  # fmt: skip


def test_the_response_repeats_its_request() -> None:
    fields = {"instructions": "I", "max_output_tokens": 9, "metadata": {"k": "v"}, "temperature": 0.5, "tools": [TOOL]}
    body = read(**fields).body(HEADING)
    body.feed([(0, started()), (0, ended(0))])
    whole = orjson.loads(body.render())
    assert {name: whole[name] for name in fields} == fields
    assert (whole["id"], whole["model"], whole["created_at"]) == ("resp_42", "real", 1234)
    assert (whole["object"], whole["store"], whole["previous_response_id"]) == ("response", False, None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, Code.UNSUPPORTED_PARAMETER, "previous_response_id"),
        ({"conversation": {"id": "c"}}, Code.UNSUPPORTED_PARAMETER, "conversation"),
        ({"prompt": {"id": "p"}}, Code.UNSUPPORTED_PARAMETER, "prompt"),
        ({"background": True}, Code.UNSUPPORTED_PARAMETER, "background"),
        ({"input": None}, Code.INVALID_VALUE, "input"),
        ({"input": []}, Code.INVALID_VALUE, "input"),
        ({"input": ["x"]}, Code.INVALID_VALUE, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, Code.INVALID_VALUE, "input[0].role"),
        ({"input": [{"content": "x"}]}, Code.MISSING_FIELD, "input[0].role"),
        ({"input": [{"role": "user"}]}, Code.MISSING_FIELD, "input[0].content"),
        ({"input": [{"role": "user", "content": [{}]}]}, Code.MISSING_FIELD, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, Code.UNSUPPORTED_PARAMETER, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
         Code.MISSING_FIELD, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, Code.MISSING_FIELD, "input[0].output"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}]},
         Code.UNSUPPORTED_PARAMETER, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
         Code.INVALID_VALUE, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
         Code.UNSUPPORTED_PARAMETER, "input[0].content[0].type"),
        ({"tools": [{"name": "f"}]}, Code.MISSING_FIELD, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, Code.MISSING_FIELD, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, Code.INVALID_VALUE, "tools[1].name"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, Code.INVALID_VALUE, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, Code.INVALID_VALUE, "tool_choice.name"),
        ({"text": {"format": {"type": "xml"}}}, Code.INVALID_VALUE, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, Code.MISSING_FIELD, "text.format.schema"),
        ({"max_output_tokens": 0}, Code.INVALID_VALUE, "max_output_tokens"),
        ({"top_logprobs": 3}, Code.INVALID_VALUE, "top_logprobs"),
        ({"reasoning": {"effort": "hard"}}, Code.INVALID_VALUE, "reasoning.effort"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_by_name(fields: dict[str, Any], code: Code, param: str) -> None:
    assert refused(**fields) == (code, param)


def test_the_count_is_of_the_same_conversation() -> None:
    body = {"model": "m", "input": "hi", "instructions": "I", "tools": [TOOL]}
    question = OpenAIInputTokens().read(orjson.dumps(body))
    assert question == ("m", chat(instructions="I", tools=[TOOL]))
