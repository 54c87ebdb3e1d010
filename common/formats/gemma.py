"""Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,other:[1,true]}<tool_call|>`."""

import json
import re
from typing import Any

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import dump, skip_space
from common.formats.values import is_finite

_QUOTE = '<|"|>'
_HEAD = re.compile(r"<\|tool_call>\s*call:(?P<name>[^\s{}]+)\s*(?=\{)")
_PARTIAL_HEAD = re.compile(r"<\|tool_call>\s*(?:c|ca|cal|call|call:[^\s{}]*\s*)?")
_KEY = re.compile(r"[^\s:,{}\[\]<\"][^:,{}\[\]<\"]*")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null|True|False|None")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_NESTING = 64


class _Incomplete(Exception):
    """The text ends within a value."""


class _Malformed(Exception):
    """What stands there is no value."""


class Gemma(Syntax):
    """Implements Syntax. JSON is read as well: what a forced call is held to."""

    name = "gemma"
    openers = ("<|tool_call>",)
    closers = ("<tool_call|>", "}")
    fillers = ("<|tool_response>",)
    inner = (_QUOTE,)
    trigger = "<|tool_call>"

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        head = _HEAD.match(text)
        if head is None:
            return MORE if _PARTIAL_HEAD.fullmatch(text) else BROKEN
        try:
            arguments, end = _read_object(text, head.end(), 0)
        except _Incomplete:
            return MORE
        except _Malformed:
            return BROKEN
        if not is_finite(arguments):
            return BROKEN
        calls = [Call(head["name"], dump(arguments))]
        follows, closer = skip_space(text, end), self.closers[0]
        if text.startswith(closer, follows):
            return Block(calls, follows + len(closer))
        return MORE if not is_final and closer.startswith(text[follows:]) else Block(calls, end)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "".join(f"<|tool_call>call:{c.name}{_write(json.loads(c.arguments))}<tool_call|>" for c in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls, whose arguments are written as JSON."""
        bodies = [
            f"{literal(f'<|tool_call>call:{name}')} {rules.schema(f'{rule_name(name)}-arguments', schema)} "
            + literal("<tool_call|>")
            for name, schema in tools.items()
        ]
        return repeat(rules.add("gemma-call", either(bodies)), '""', is_parallel=is_parallel)


def _read_object(text: str, start: int, depth: int) -> tuple[dict[str, Any], int]:
    """Return the object that begins at `start`, and where it ends."""
    members: dict[str, Any] = {}
    position = _after_space(text, start + 1)
    while text[position] != "}":
        key, position = _read_key(text, position)
        position = _expect(text, position, ":")
        members[key], position = _read_value(text, position, depth)
        position = _next(text, position, "}")
    return members, position + 1


def _read_key(text: str, start: int) -> tuple[str, int]:
    if text[start] in '"<':
        key, end = _read_value(text, start, 0)
        if not isinstance(key, str):
            raise _Malformed
        return key, end
    match = _KEY.match(text, start)
    if match is None:
        raise _Malformed
    if match.end() == len(text):
        raise _Incomplete
    return match[0].rstrip(), match.end()


def _read_value(text: str, start: int, depth: int) -> tuple[Any, int]:
    if depth > _NESTING:
        raise _Malformed
    if text.startswith(_QUOTE, start):
        begin = start + len(_QUOTE)
        end = text.find(_QUOTE, begin)
        if end < 0:
            raise _Incomplete
        return text[begin:end], end + len(_QUOTE)
    if _QUOTE.startswith(text[start:]):
        raise _Incomplete
    match text[start]:
        case "{":
            return _read_object(text, start, depth + 1)
        case "[":
            items: list[Any] = []
            position = _after_space(text, start + 1)
            while text[position] != "]":
                item, position = _read_value(text, position, depth + 1)
                items.append(item)
                position = _next(text, position, "]")
            return items, position + 1
        case '"':
            return _read_json_text(text, start)
    match = _PLAIN.match(text, start)
    if match is None:
        rest = text[start:]
        if rest == "-" or any(word.startswith(rest) for word in _WORDS):
            raise _Incomplete
        raise _Malformed
    if match.end() == len(text):
        raise _Incomplete
    return (_WORDS[match[0]] if match[0] in _WORDS else json.loads(match[0])), match.end()


def _read_json_text(text: str, start: int) -> tuple[str, int]:
    position = start + 1
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text[position] == '"':
            try:
                return str(json.loads(text[start : position + 1], strict=False)), position + 1
            except ValueError:
                raise _Malformed from None
        else:
            position += 1
    raise _Incomplete


def _after_space(text: str, start: int) -> int:
    position = skip_space(text, start)
    if position == len(text):
        raise _Incomplete
    return position


def _expect(text: str, start: int, mark: str) -> int:
    position = _after_space(text, start)
    if text[position] != mark:
        raise _Malformed
    return _after_space(text, position + 1)


def _next(text: str, start: int, end: str) -> int:
    """Return where the next member begins, or the end mark stands."""
    position = _after_space(text, start)
    if text[position] == end:
        return position
    return _expect(text, position, ",")


def _write(value: Any) -> str:
    match value:
        case str():
            return f"{_QUOTE}{value}{_QUOTE}"
        case dict():
            return "{" + ",".join(f"{k}:{_write(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_write, value)) + "]"
        case _:
            return dump(value)
