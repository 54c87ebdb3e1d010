"""Messages as a template wants them: the same content, in the shape that this template reads. Pure."""

import json
from typing import Any, NamedTuple

from common.formats.contract import Call, Syntax
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
    calls: bool
    """It shows the calls of earlier turns."""
    parallel: bool
    """It takes several calls in one message."""
    system: bool
    """It has a place for system messages."""
    loses_system: bool
    """It leaves them out, or refuses them."""
    later_systems: bool
    """It has a place for those that are not the first message."""
    systems_before_results: bool
    """It shows them also where the conversation ends with the result of a call."""
    neighbours: bool
    """It takes two messages of one role in a row."""
    thinking: bool
    """It reads reasoning from `thinking` instead of `reasoning_content`."""


def shape(messages: list[Message], tools: list[dict[str, Any]], abilities: Abilities, syntax: Syntax) -> list[Message]:
    """Return the messages for the template.

    Content that is a list of text parts becomes their concatenation, since most templates only know text; nothing is
    put between them. No content is empty text. What the template would lose or refuse is put where it can show it:
    a later system message into the user's next one, several calls of one message into messages of their own, calls
    that it does not show into the text, in its own `syntax`, messages of one role in a row into one. Tools that the
    template has no place for are written into the messages, in the form of Hermes, and so are their calls and results.
    """
    shaped = [_shape_one(message, abilities) for message in messages]
    is_lost = abilities.loses_system or (not abilities.systems_before_results and _ends_with_result(shaped))
    if is_lost or (abilities.system and not abilities.later_systems):
        shaped = _fold_systems(shaped, keeps_first=abilities.system and not is_lost)
    if not abilities.tools:
        shaped = _write_out(shaped, tools, abilities)
    elif not abilities.calls:
        shaped = [_with_text(message, syntax) for message in shaped]
    elif not abilities.parallel:
        shaped = _one_by_one(shaped)
    return shaped if abilities.neighbours else _joined(shaped)


def _ends_with_result(messages: list[Message]) -> bool:
    return bool(messages) and messages[-1]["role"] == "tool"


def _fold_systems(messages: list[Message], *, keeps_first: bool) -> list[Message]:
    """Join the system messages at the beginning into one, and put the others before the user's next text."""
    out: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        text = message["content"]
        is_text = isinstance(text, str)
        if message["role"] == "system" and is_text:
            is_first = all(m["role"] == "system" for m in out) and not waiting
            if not keeps_first or not is_first:
                waiting.append(text)
            elif out:
                out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n\n{text}"}
            else:
                out.append(message)
            continue
        if waiting and message["role"] == "user" and is_text:
            message = {**message, "content": "\n\n".join([*waiting, text])}
            waiting = []
        elif waiting:
            _add_to_user(out, waiting)
            waiting = []
        out.append(message)
    if waiting:
        _add_to_user(out, waiting)
    return out


def _joined(messages: list[Message]) -> list[Message]:
    """Make one message of neighbours of the same role, where both are only text."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if last is not None and message["role"] == last["role"] != "tool" and _is_only_text(last, message):
            out[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            out.append(message)
    return out


def _is_only_text(*messages: Message) -> bool:
    return all(isinstance(m["content"], str) and not m.get("tool_calls") for m in messages)


def _add_to_user(out: list[Message], texts: list[str]) -> None:
    """Put texts after what the user said last, or else into a message of the user's."""
    last = out[-1] if out else None
    if last is not None and last["role"] == "user" and isinstance(last["content"], str):
        out[-1] = {**last, "content": "\n\n".join([last["content"], *texts])}
    else:
        out.append({"role": "user", "content": "\n\n".join(texts)})


def _with_text(message: Message, syntax: Syntax) -> Message:
    """Write a message's calls as the model did."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    text = syntax.render([_call(c) for c in calls])
    return {**message, "content": f"{message['content']}{text}"}


def _one_by_one(messages: list[Message]) -> list[Message]:
    """Give each of several calls a message of its own, before its result."""
    out: list[Message] = []
    asked: dict[Any, Message] = {}
    """Of the calls that were taken apart: id → message."""
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list) and len(calls) > 1:
            asked = {}
            for number, call in enumerate(calls):
                one = {**message, "content": message["content"] if number == 0 else "", "tool_calls": [call]}
                asked[call.get("id") if isinstance(call, dict) else None] = one
                out.append(one)
        elif message["role"] == "tool" and message.get("tool_call_id") in asked:
            question = asked.pop(message["tool_call_id"])
            out.insert(next(i for i, m in enumerate(out) if m is question) + 1, message)
        else:
            out.append(message)
    return out


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
