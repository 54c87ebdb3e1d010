"""A history as the model is told it: pairing kept, adjacent messages joined, shortened to fit. Pure."""

import json
from collections.abc import Iterable
from typing import Any

from cortex.acp.store import Entry

Message = dict[str, Any]

CANCELLED = "cancelled: the user stopped this call before it had finished"
_REMOVED = "[removed to save room; call the tool again where it is needed]"
_SHORT = 200
_CHARACTERS_PER_TOKEN = 3
"""On the safe side for code; prose has about four."""


def user_entry(content: Any, blocks: list[Any]) -> Entry:
    """Return the entry of a user's message: what the model gets, and what the editor sent."""
    return {"role": "user", "content": content, "blocks": blocks}


def reply_entry(text: str, reasoning: str, calls: list[dict[str, str]], *, is_partial: bool = False) -> Entry:
    """Return the entry of a model's reply; `calls` have id, name and arguments (JSON text)."""
    entry: Entry = {"role": "assistant", "content": text}
    if reasoning:
        entry["reasoning"] = reasoning
    if calls:
        entry["tool_calls"] = calls
    if is_partial:
        entry["partial"] = True
    return entry


def result_entry(call_id: str, name: str, text: str, *, is_error: bool) -> Entry:
    """Return the entry of a tool's result."""
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": text, "is_error": is_error}


def unpaired(history: Iterable[Entry]) -> set[str]:
    """Return the ids of calls without exactly one result, and of results without a call."""
    calls: list[str] = []
    results: list[str] = []
    for entry in history:
        calls += [c["id"] for c in entry.get("tool_calls", ())]
        if entry["role"] == "tool":
            results.append(entry["tool_call_id"])
    return {i for i in {*calls, *results} if calls.count(i) != 1 or results.count(i) != 1}


def project(
    system: str, history: list[Entry], *, compacted: int = 0, budget_tokens: int | None = None
) -> list[Message]:
    """Return the messages of a request.

    The first `compacted` entries come in short. Where a budget is given and does not hold, the oldest tool results go
    first, then the oldest prose; the last user's message and what follows it go last of all. Ids and pairing stay.
    """
    short = [_shorten(e) if i < compacted else e for i, e in enumerate(history)]
    if budget_tokens is not None:
        budget = budget_tokens * _CHARACTERS_PER_TOKEN - len(system)
        size = sum(map(_size, short))
        last = max((i for i, e in enumerate(history) if e["role"] == "user"), default=0)
        old, new = range(last), range(last + 1, max(last + 1, len(short) - 1))
        order = [i for i in old if short[i]["role"] == "tool"] + [i for i in new if short[i]["role"] == "tool"]
        order += [i for i in old if short[i]["role"] != "tool"]
        for index in order:
            if size <= budget:
                break
            shorter = _shorten(short[index])
            size += _size(shorter) - _size(short[index])
            short[index] = shorter
    messages: list[Message] = [{"role": "system", "content": system}]
    for entry in (e for e in short if not e.get("local")):
        message = _message(entry)
        if message["role"] == "user" and messages[-1]["role"] == "user":
            messages[-1] = {"role": "user", "content": _join(messages[-1]["content"], message["content"])}
        elif message["role"] == "assistant" and not message["content"] and "tool_calls" not in message:
            continue  # a reply that was cancelled before its first character
        else:
            messages.append(message)
    return messages


def _message(entry: Entry) -> Message:
    match entry["role"]:
        case "tool":
            return {"role": "tool", "tool_call_id": entry["tool_call_id"], "content": entry["content"]}
        case "assistant":
            message: Message = {"role": "assistant", "content": entry["content"]}
            if entry.get("tool_calls"):
                message["tool_calls"] = [
                    {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": _object(c)}}
                    for c in entry["tool_calls"]
                ]
            return message
    return {"role": entry["role"], "content": entry["content"]}


def _object(call: dict[str, str]) -> str:
    """Return arguments that every server can parse; what the model got wrong it is told in the result."""
    try:
        return call["arguments"] if isinstance(json.loads(call["arguments"]), dict) else "{}"
    except ValueError:
        return "{}"


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return _parts(first) + _parts(second)


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _shorten(entry: Entry) -> Entry:
    if entry["role"] == "tool":
        return entry if len(entry["content"]) <= len(_REMOVED) else {**entry, "content": _REMOVED}
    content = entry["content"]
    if isinstance(content, list):
        content = "\n".join(p["text"] for p in content if p.get("type") == "text")
    if len(content) > _SHORT:
        content = content[:_SHORT] + " […]"
    return {**entry, "content": content}


def _size(entry: Entry) -> int:
    """Return about how many characters an entry takes, its calls with it."""
    content = entry["content"]
    size = len(content) if isinstance(content, str) else sum(len(p.get("text", " " * 3000)) for p in content)
    return size + sum(len(c["name"]) + len(c["arguments"]) + 40 for c in entry.get("tool_calls", ())) + 12
