"""Messages as a template wants them: the same content, in the shape that this template reads. Pure."""

import json
from typing import Any, NamedTuple

from common.formats.contract import Call
from common.formats.hermes import Hermes

Message = dict[str, Any]

_HERMES_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_HERMES_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


class Abilities(NamedTuple):
    """What a template can show, found out by asking it (neuron/prep/template.py)."""

    tools: bool
    """It has a place for tools, calls and results."""
    object_arguments: bool
    """It wants a call's arguments as an object, not as text."""
    system: bool
    """It has a place for system messages."""
    thinking: bool
    """It reads reasoning from `thinking` instead of `reasoning_content`."""


def shape(messages: list[Message], tools: list[dict[str, Any]], abilities: Abilities) -> list[Message]:
    """Return the messages for the template.

    Content that is a list of text parts becomes their concatenation, since most templates only know text; nothing is
    put between them. No content is empty text. Tools that the template has no place for are written into the messages,
    in the form of Hermes, and so are their calls and results.
    """
    shaped = [_shape_one(message, abilities) for message in messages]
    return shaped if abilities.tools else _write_out(shaped, tools, abilities)


def _shape_one(message: Message, abilities: Abilities) -> Message:
    shaped = {**message, "content": _as_text(message.get("content"))}
    if abilities.thinking and "reasoning_content" in message:
        shaped["thinking"] = message["reasoning_content"]
    calls = message.get("tool_calls")
    if isinstance(calls, list) and abilities.object_arguments:
        shaped["tool_calls"] = [_with_object(call) for call in calls]
    return shaped


def _as_text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(p.get("text", "")) for p in content)
    return "" if content is None else content


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call  # an answer that was cut off; the template shows it as the text it is
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _write_out(messages: list[Message], tools: list[dict[str, Any]], abilities: Abilities) -> list[Message]:
    out: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            text = Hermes().render([_call(c) for c in message["tool_calls"]])
            content = f"{message['content']}\n{text}" if message["content"] else text
            out.append({"role": message["role"], "content": content})
        elif message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if out and out[-1].get("is_result"):
                out[-1]["content"] += f"\n{text}"
            else:
                out.append({"role": "user", "content": text, "is_result": True})
        else:
            out.append(message)
    for message in out:
        message.pop("is_result", None)
    return _announce(out, tools, abilities) if tools else out


def _announce(messages: list[Message], tools: list[dict[str, Any]], abilities: Abilities) -> list[Message]:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = f"{_HERMES_HEAD}{listed}{_HERMES_TAIL}"
    first = messages[0] if messages else None
    if first is not None and first["role"] == "system":
        head = {**first, "content": f"{first['content']}\n\n{text}" if first["content"] else text}
        return [head, *messages[1:]]
    if abilities.system or first is None or first["role"] != "user":
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]


def _call(call: Any) -> Call:
    function = call.get("function", {}) if isinstance(call, dict) else {}
    arguments = function.get("arguments", "{}")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(str(function.get("name", "")), text or "{}")
