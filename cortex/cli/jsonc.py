"""Merging into JSON with comments, as Zed and opencode have it: what does not change stays as it is written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

import orjson

_BLANK = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}/:]+")
_string = JSONDecoder().raw_decode
"""To be asked where a quotation mark is: the text and where it ends."""
_INDENT = 2
_DEEPEST = 100


@dataclass
class _Node:
    """A value, with its place in the text."""

    start: int
    end: int = 0
    members: "dict[str, _Node] | None" = None
    """Of an object."""
    last_end: int = 0
    """Of an object: where its last value ends."""
    has_comma: bool = True
    """Of an object: whether another member may follow where its last value ends."""


def merge(text: str, made: dict[str, Any], whole: str) -> str:
    """Return the text of an object with what is `made` put over it; an object named `whole` is replaced as a whole.

    Raises ValueError for what is no JSON, comments and trailing commas aside.
    """
    body = text if text.strip() else "{}\n"
    root, end = _value(body, _skip(body, 0), 0)
    if _skip(body, end) != len(body):
        raise ValueError(f"something follows the object, in {_place(body, end)}")
    if root.members is None:
        raise ValueError("must hold an object")
    for start, stop, new in sorted(_edits(body, root, made, whole, 1), reverse=True):
        body = body[:start] + new + body[stop:]
    return body


def _edits(text: str, node: _Node, made: dict[str, Any], whole: str, depth: int) -> Iterator[tuple[int, int, str]]:
    assert node.members is not None
    fresh = []
    for key, value in made.items():
        known = node.members.get(key)
        if known is None:
            fresh.append(f"{orjson.dumps(key).decode()}: {_render(value, depth)}")
        elif known.members is not None and isinstance(value, dict) and key != whole:
            yield from _edits(text, known, value, whole, depth + 1)
        else:
            yield known.start, known.end, _render(value, depth)
    if fresh:
        brace = node.end - 1
        tail = len(text[:brace].rstrip())
        indent = "\n" + " " * _INDENT * depth
        new = ",".join(indent + f for f in fresh) + indent[:-_INDENT]
        if not node.has_comma and tail > node.last_end:  # a comment is between
            yield node.last_end, node.last_end, ","
        elif not node.has_comma:
            new = "," + new
        yield tail, brace, new


def _render(value: Any, depth: int) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().replace("\n", "\n" + " " * _INDENT * depth)


def _value(text: str, at: int, depth: int) -> tuple[_Node, int]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    match text[at : at + 1]:
        case "{":
            return _object(text, at, depth)
        case "[":
            return _array(text, at, depth)
        case '"':
            return _Node(at, end := _string(text, at)[1]), end
    found = _SCALAR.match(text, at)
    try:
        orjson.loads(found[0] if found else "")
    except orjson.JSONDecodeError:
        raise ValueError(f"no value in {_place(text, at)}") from None
    assert found is not None
    return _Node(at, found.end()), found.end()


def _object(text: str, at: int, depth: int) -> tuple[_Node, int]:
    node = _Node(at, members={})
    assert node.members is not None
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"' or not node.has_comma:
            raise ValueError(f"neither a name nor the end of an object in {_place(text, at)}")
        key, at = _string(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no colon in {_place(text, at)}")
        node.members[key], at = _value(text, _skip(text, at + 1), depth + 1)
        node.last_end, node.has_comma = at, False
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            node.has_comma = True
            at = _skip(text, at + 1)
    node.end = at + 1
    return node, node.end


def _array(text: str, at: int, depth: int) -> tuple[_Node, int]:
    node, has_comma = _Node(at), True
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        if not has_comma:
            raise ValueError(f"neither a comma nor the end of a list in {_place(text, at)}")
        _, at = _value(text, at, depth + 1)
        at = _skip(text, at)
        has_comma = text[at : at + 1] == ","
        if has_comma:
            at = _skip(text, at + 1)
    node.end = at + 1
    return node, node.end


def _skip(text: str, at: int) -> int:
    """Return where what comes after white space and comments begins."""
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def _place(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}"
