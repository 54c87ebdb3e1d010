"""Replies of the OpenAI dialects, from recorded events."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from common.errors import Code, RequestError
from common.messages import EndedItem, Likelihood, TokenLogprob
from cortex.api import errors
from cortex.dialects.contract import Dialect, Heading, Request
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.fleet.contract import Events, Merged, Told
from tests.support.fake_fleet import begun, done

HEADING = Heading(id="42", model="real", created=1234)


def read(dialect: Dialect, **fields: Any) -> Request:
    """Read a request of either dialect."""
    base = {"model": "m", "messages": [{"role": "user", "content": "q"}], "prompt": "q"}
    return dialect.read(orjson.dumps({**base, **fields}))


def chunks(data: bytes) -> list[dict[str, Any]]:
    """Return the JSON of all events of a complete stream."""
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(e.startswith("data: {") for e in events[:-2])
    return [orjson.loads(e.removeprefix("data: ")) for e in events[:-2]]


def stream(request: Request, *batches: Events) -> list[dict[str, Any]]:
    """Return the chunks for events that come in these batches."""
    reply = request.stream(HEADING)
    data = b"".join(reply.feed(batch) for batch in batches)
    assert reply.is_complete
    return chunks(data)


def whole(request: Request, *batches: Events) -> dict[str, Any]:
    """Return the body for the same events."""
    reply = request.body(HEADING)
    for batch in batches:
        assert not reply.is_complete
        reply.feed(batch)
    assert reply.is_complete
    body: dict[str, Any] = orjson.loads(reply.render())
    return body


ONE: list[Events] = [[(0, begun(7, 3))], [(0, "Hel")], [(0, "lo"), (0, done(2))]]


def test_a_chat_stream_is_role_then_content_then_finish_then_done() -> None:
    made = stream(read(OpenAIChat(), stream=True), *ONE)
    assert [c["choices"][0]["delta"] for c in made] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in made] == [None, None, None, "stop"]
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in made} == {
        ("chatcmpl-42", "chat.completion.chunk", 1234, "real")
    }
    assert made[-1]["timings"]["predicted_n"] == 2
    assert all("usage" not in c for c in made)


def test_usage_comes_last_with_empty_choices_when_asked_for() -> None:
    made = stream(read(OpenAIChat(), stream=True, stream_options={"include_usage": True}), *ONE)
    assert made[-1]["choices"] == []
    assert made[-1]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert [c["usage"] for c in made[:-1]] == [None] * 4
    assert ["timings" in c for c in made] == [False] * 4 + [True]


def test_a_chat_body_has_message_usage_and_timings() -> None:
    body = whole(read(OpenAIChat()), *ONE)
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["total_tokens"] == 9
    assert body["timings"]["predicted_per_second"] == 100.0


@pytest.mark.parametrize(("reason", "finish"), [("stop", "stop"), ("stop_sequence", "stop"), ("length", "length")])
def test_each_reason_has_its_finish_reason(reason: str, finish: str) -> None:
    body = whole(read(OpenAIChat()), [(0, begun()), (0, done(0, reason))])
    assert body["choices"][0]["finish_reason"] == finish


def test_a_failure_in_mid_stream_is_an_error_event_without_done() -> None:
    reply = read(OpenAIChat(), stream=True).stream(HEADING)
    data = reply.feed([(0, begun()), (0, "Hel")])
    data += reply.fail(errors.to_openai(RequestError(Code.WORKER_DIED, "gone")))
    last = data.decode().split("\n\n")[-2]
    assert orjson.loads(last.removeprefix("data: "))["error"]["code"] == "worker_died"
    assert b"[DONE]" not in data
    assert b'finish_reason":"' not in data
    assert not reply.is_complete


def test_echo_comes_before_the_text_streaming_and_not() -> None:
    request = read(OpenAICompletions(), prompt=["a ", "b "], n=2, echo=True)
    events: list[Events] = [[(i, begun(2)), (i, f"t{i}"), (i, done(1))] for i in range(4)]
    body = whole(request, *events)
    assert [c["text"] for c in body["choices"]] == ["a t0", "a t1", "b t2", "b t3"]
    assert body["usage"]["prompt_tokens"] == 4, "each prompt counts once"
    texts = ["", "", "", ""]
    for chunk in stream(request, *events):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["a t0", "a t1", "b t2", "b t3"]


def test_text_that_looks_like_framing_stays_text() -> None:
    text = 'x\n\ndata: [DONE]\n\n%s {"a": "\u2028\x00"} 🙂'
    made = stream(read(OpenAIChat(), stream=True), [(0, begun()), (0, text), (0, done(1))])
    assert made[1]["choices"][0]["delta"]["content"] == text


def fold(made: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Put a stream together as a client does."""
    texts, reasons = [""] * size, [""] * size
    for chunk in made:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice.get("text", "") + (choice.get("delta", {}).get("content") or "")
            reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    return {"texts": texts, "reasons": reasons, "usage": made[-1]["usage"], "timings": made[-1]["timings"]}


@given(
    answers=st.lists(st.tuples(st.lists(st.text(max_size=5), max_size=5), st.sampled_from(["stop", "length"])),
                     min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 4), max_size=10),
    order=st.randoms(use_true_random=False),
    dialect=st.sampled_from([OpenAIChat(), OpenAICompletions()]),
)  # fmt: skip
def test_folding_the_stream_gives_the_body(
    answers: list[tuple[list[str], str]], cuts: list[int], order: Any, dialect: Dialect
) -> None:
    queues: list[Events] = []
    for index, (pieces, reason) in enumerate(answers):
        end: EndedItem = done(len(pieces), reason)
        queues.append([(index, begun(4, 1)), *((index, p) for p in pieces if p), (index, end)])
    events: Events = []
    while any(queues):
        events.append(order.choice([q for q in queues if q]).pop(0))
    batches: list[Events] = []
    for cut in cuts:
        batches.append(events[:cut])
        events = events[cut:]
    batches = [b for b in [*batches, events] if b]
    request = read(dialect, n=len(answers), stream=True, stream_options={"include_usage": True})
    body = whole(request, *batches)
    assert fold(stream(request, *batches), len(answers)) == {
        "texts": [c["text"] if "text" in c else c["message"]["content"] for c in body["choices"]],
        "reasons": [c["finish_reason"] for c in body["choices"]],
        "usage": body["usage"],
        "timings": body["timings"],
    }


def call(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": [1, "é"]}}}}\n</tool_call>'


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
THINKS = "think+hermes"
STREAMS: dict[str, tuple[str, bool, list[str], str, list[str], str]] = {
    # format, open, pieces, why it ended → what the message has, finish_reason
    "reasoning then text": (THINKS, True, ["so", " it is</thi", "nk>\n\n4", "2"], "stop",
                            ["reasoning_content", "content"], "stop"),
    "text then tool": ("+hermes", False, ["I look.\n" + call("f")], "stop", ["content", "tool_calls"], "tool_calls"),
    "tool only": ("+hermes", False, [*call("f")], "stop", ["tool_calls"], "tool_calls"),
    "two tools": ("+hermes", False, [call("f"), "\n", call("g")], "stop", ["tool_calls", "tool_calls"], "tool_calls"),
    "cut in thinking": (THINKS, True, ["half", " a"], "length", ["reasoning_content"], "length"),
    "cut in a call": ("+hermes", False, [call("f")[:30]], "length", ["content"], "length"),
    "stop string": ("+hermes", False, ["a"], "stop_sequence", ["content"], "stop"),
    "resumed": (THINKS, True, [Merged("a b", 3), "c</think>", "d"], "stop", ["reasoning_content", "content"], "stop"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_the_message_it_stands_for(name: str) -> None:
    format_, is_open, pieces, ended, parts, reason = STREAMS[name]
    begin = structs.replace(begun(), format=format_, thinking_open=is_open)
    events: Events = [(0, begin), *((0, piece) for piece in pieces), (0, done(9, ended))]
    (choice,) = whole(read(OpenAIChat(), tools=TOOLS), events)["choices"]
    message = choice["message"]
    calls = ["tool_calls"] * len(message.get("tool_calls", []))
    assert [n for n in ("reasoning_content", "content") if message.get(n)] + calls == parts
    assert choice["finish_reason"] == reason


PIECES = ["<think>", "</think>", "a\n", "é", "<tool", "_call>", *call("f"), call("g")]


@given(pieces=st.lists(st.sampled_from(PIECES)), format_=st.sampled_from(["", "+hermes", "think+hermes"]),
       is_open=st.booleans(), is_cut=st.booleans())  # fmt: skip
def test_folding_a_chat_of_thoughts_and_calls_gives_the_body(
    pieces: list[str], format_: str, is_open: bool, is_cut: bool
) -> None:
    begin = structs.replace(begun(), format=format_, thinking_open=is_open and format_ == "think+hermes")
    items: list[Any] = [begin, *pieces, done(len(pieces), "length" if is_cut else "stop")]
    events: Events = [(0, item) for item in items]
    request = read(OpenAIChat(), tools=TOOLS, stream=True, stream_options={"include_usage": True})
    message: dict[str, Any] = {"role": "", "content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    made = stream(request, *([event] for event in events))
    for choice in (c for chunk in made for c in chunk["choices"]):
        reason = choice["finish_reason"] or reason
        for name, value in choice["delta"].items():
            if name != "tool_calls":
                message[name] += value
                continue
            (part,) = value
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": part["id"], "type": part["type"], "function": part["function"]})
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    body = whole(request, events)
    (choice,) = body["choices"]
    expected = {"reasoning_content": "", "tool_calls": [], **choice["message"]}
    assert {**message, "content": message["content"] or None} == {**expected, "content": expected["content"] or None}
    assert (reason, made[-1]["usage"]) == (choice["finish_reason"], body["usage"])


def told(text: str, *logprobs: float) -> Told:
    """Return a piece whose tokens are its characters."""
    entries = [
        TokenLogprob(Likelihood(c.encode(), p), [Likelihood(c.encode(), p)])
        for c, p in zip(text, logprobs, strict=True)
    ]
    return Told(text, entries)


def test_chat_tells_log_probabilities_as_documented() -> None:
    events: Events = [(0, begun()), (0, told("hi", -0.5, -0.25)), (0, done(2))]
    body = whole(read(OpenAIChat(), logprobs=True, top_logprobs=1), events)
    h = {"token": "h", "logprob": -0.5, "bytes": [104]}
    i = {"token": "i", "logprob": -0.25, "bytes": [105]}
    content = [{**h, "top_logprobs": [h]}, {**i, "top_logprobs": [i]}]
    assert body["choices"][0]["logprobs"] == {"content": content, "refusal": None}
    assert body["choices"][0]["message"]["content"] == "hi"
    made = stream(read(OpenAIChat(), logprobs=True, top_logprobs=1, stream=True), events)
    assert made[1]["choices"][0]["logprobs"] == {"content": content, "refusal": None}
    assert made[1]["choices"][0]["delta"] == {"content": "hi"}


def test_completions_tell_log_probabilities_with_the_offsets_of_the_text() -> None:
    events: Events = [(0, begun()), (0, told("hi", -0.5, -0.25)), (0, told("!", -1.0)), (0, done(3))]
    expected = {
        "tokens": ["h", "i", "!"],
        "token_logprobs": [-0.5, -0.25, -1.0],
        "top_logprobs": [{"h": -0.5}, {"i": -0.25}, {"!": -1.0}],
        "text_offset": [3, 4, 5],
    }
    request = read(OpenAICompletions(), logprobs=1, echo=True, prompt="say")
    assert whole(request, events)["choices"][0]["logprobs"] == expected
    request = read(OpenAICompletions(), logprobs=1, echo=True, prompt="say", stream=True)
    made = [c["choices"][0]["logprobs"] for c in stream(request, events)]
    assert [entry for each in made if each for entry in each["text_offset"]] == [3, 4, 5]


def test_without_being_asked_nothing_is_told() -> None:
    body = whole(read(OpenAIChat(), logprobs=True), [(0, begun()), (0, done(0))])
    assert body["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert whole(read(OpenAIChat()), *ONE)["choices"][0]["logprobs"] is None
