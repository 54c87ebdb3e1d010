"""What the dialects cost the gateway's one thread: bytes of a delta, and a large request read."""

import json
import time
from collections.abc import Callable
from typing import Any

from common.messages import StartedItem
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.contract import Dialect, Heading
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_responses import OpenAIResponses
from cortex.fleet.contract import Events

HEADING = Heading(id="0123456789abcdef0123456789abcdef", model="a/model", created=1)
ROUNDS = 7
DELTAS = 20_000
REQUEST_BYTES = 200_000
TOOLS = 24


def measure() -> dict[str, Any]:
    """Return microseconds a delta and milliseconds a request of 200 KB: processor time, the best of the rounds."""
    tool = {"name": "f", "description": "d"}
    chat = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    requests: dict[str, tuple[Dialect, dict[str, Any], list[dict[str, Any]]]] = {
        "chat": (OpenAIChat(), chat, [{"type": "function", "function": tool}]),
        "responses": (OpenAIResponses(), {"input": "hi", "stream": True}, [{"type": "function", **tool}]),
        "anthropic": (AnthropicMessages(), {**chat, "max_tokens": 99}, [{**tool, "input_schema": {"type": "object"}}]),
    }
    deltas: dict[str, float] = {}
    reads: dict[str, float] = {}
    for name, (dialect, body, tools) in requests.items():
        for kind, format_ in (("plain", ""), ("with tools", "+hermes"), ("thinking", "think+hermes")):
            given = {**body, "tools": tools} if format_ else body
            deltas[f"{name}, {kind}"] = round(_delta_us(dialect, given, format_), 2)
        reads[name] = round(_read_ms(dialect, _large(name)), 2)
    return {"delta_us": deltas, "read_200_kb_ms": reads, "rounds": ROUNDS}


def _delta_us(dialect: Dialect, body: dict[str, Any], format_: str) -> float:
    """Return microseconds from a token's text to the bytes of its event."""
    request = dialect.read(json.dumps({"model": "m", **body}).encode())
    begin = StartedItem(
        job="j", attempt=0, prompt_tokens=9, max_tokens=9, format=format_, thinking_open="think" in format_
    )
    four: list[Events] = [[(0, " some")], [(0, " text")], [(0, ",")], [(0, " é")]]
    batches = four * (DELTAS // 4)

    def run() -> None:
        stream = request.stream(HEADING)
        stream.feed([(0, begin)])
        for batch in batches:
            stream.feed(batch)

    return _best_s(run) / len(batches) * 1e6


def _read_ms(dialect: Dialect, body: dict[str, Any]) -> float:
    """Return milliseconds from a request's bytes to its canonical form."""
    data = json.dumps({"model": "m", **body}).encode()
    assert len(data) >= REQUEST_BYTES
    return _best_s(lambda: dialect.read(data)) * 1e3


def _large(name: str) -> dict[str, Any]:
    """Return a request like a coding agent's: 64 KB of tools, and a long conversation with calls and results."""
    properties = {f"p{n}": {"type": "string", "description": "what it is for, at some length " * 4} for n in range(17)}
    schema = {"type": "object", "properties": properties, "required": ["p0"]}
    functions = [{"name": f"tool_{n}", "description": "d" * 200} for n in range(TOOLS)]
    text, turns = "some text of a file that was read\n" * 30, 60
    if name == "responses":
        items: list[dict[str, Any]] = []
        for n in range(turns):
            items += [
                {"role": "user", "content": [{"type": "input_text", "text": text}]},
                {"type": "function_call", "call_id": f"c{n}", "name": "tool_0", "arguments": '{"p0": "x"}'},
                {"type": "function_call_output", "call_id": f"c{n}", "output": text},
            ]
        tools = [{"type": "function", **f, "parameters": schema} for f in functions]
        return {"input": items, "tools": tools}
    messages: list[dict[str, Any]] = []
    for n in range(turns):
        messages.append({"role": "user", "content": [{"type": "text", "text": text}]})
        if name == "chat":
            call = {"id": f"c{n}", "type": "function", "function": {"name": "tool_0", "arguments": '{"p0": "x"}'}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"c{n}", "content": text})
        else:
            use = {"type": "tool_use", "id": f"c{n}", "name": "tool_0", "input": {"p0": "x"}}
            messages.append({"role": "assistant", "content": [use]})
            result = {"type": "tool_result", "tool_use_id": f"c{n}", "content": text}
            messages.append({"role": "user", "content": [result]})
    if name == "chat":
        return {
            "messages": messages,
            "tools": [{"type": "function", "function": {**f, "parameters": schema}} for f in functions],
        }
    return {"messages": messages, "max_tokens": 9, "tools": [{**f, "input_schema": schema} for f in functions]}


def _best_s(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)
