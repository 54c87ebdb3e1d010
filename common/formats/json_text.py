"""JSON inside the text of an answer: where it ends, and the call it stands for."""

import json
import re
from typing import Any

import msgspec

from common.formats.contract import Call

_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
_SPACE = re.compile(r"\s*")
_ARGUMENTS = ("arguments", "parameters")
_NAMES = ("name", "tool_name")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])


def skip_space(text: str, start: int) -> int:
    """Return the index of the first character from `start` on that is no space."""
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def json_end(text: str, start: int) -> int | None:
    """Return where the object or list that begins at `start` ends; None while it is not complete."""
    depth = 0
    for match in _MARK.finditer(text, start):
        mark = match[0]
        if mark == '"':
            return None
        if mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if depth <= 0:
                return match.end()
    return None


def read_object(text: str) -> dict[str, str] | None:
    """Return the members of a JSON object as JSON texts; None if it is none."""
    try:
        return {k: bytes(v).decode() for k, v in _object.decode(text).items()}
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:
        # Models write line ends into strings, which JSON forbids.
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return {k: dump(v) for k, v in value.items()} if isinstance(value, dict) else None


def read_list(text: str) -> list[str] | None:
    """Return the items of a JSON list as JSON texts; None if it is none."""
    try:
        return [bytes(v).decode() for v in _list.decode(text)]
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return [dump(v) for v in value] if isinstance(value, list) else None


def read_arguments(text: str) -> str | None:
    """Return arguments as the text of a JSON object; some models write that object as a string. None if neither."""
    if read_object(text) is not None:
        return text if _is_strict(text) else dump(json.loads(text, strict=False))
    inner = load(text)
    if isinstance(inner, str) and read_object(inner) is not None:
        return inner if _is_strict(inner) else dump(json.loads(inner, strict=False))
    return None


def read_call(text: str) -> Call | None:
    """Return the call in `{"name": …, "arguments": {…}}`, under any of the names that models use."""
    members = read_object(text)
    if members is None:
        return None
    if "function" in members and not any(n in members for n in _NAMES):
        inner = load(members["function"])
        if isinstance(inner, dict):
            return read_call(members["function"])
        members = {**members, "name": members["function"]}
    name = next((load(members[n]) for n in _NAMES if n in members), None)
    raw = next((members[n] for n in _ARGUMENTS if n in members), "{}")
    arguments = read_arguments(raw)
    if not isinstance(name, str) or not name or arguments is None:
        return None
    return Call(name, arguments)


def read_calls(text: str) -> list[Call] | None:
    """Return the calls in a JSON list of them, or in a single one; None if any of it is none."""
    items = read_list(text) if text.startswith("[") else [text]
    calls = [] if items is None else [call for item in items if (call := read_call(item)) is not None]
    return calls if items and len(calls) == len(items) else None


def load(text: str) -> Any:
    """Return a JSON text's value; None if it is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def dump(value: Any) -> str:
    """Return a value as JSON text."""
    return json.dumps(value, ensure_ascii=False)


def _is_strict(text: str) -> bool:
    try:
        _object.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return True
