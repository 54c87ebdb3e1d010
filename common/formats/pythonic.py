"""Calls as a Python list, `[f(a=1, b="x"), g()]`: Llama 3.2 and 4, LFM 2."""

import ast
from typing import Any, ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Schema, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import dump, load, skip_space

_TRIPLES = ('"""', "'''")
_NESTING = 64


class Pythonic(Syntax):
    """Implements Syntax for a list at the beginning of an answer. Only known functions are calls."""

    name = "pythonic"
    openers: ClassVar[tuple[str, ...]] = ("[", "<|python_start|>")
    closers: ClassVar[tuple[str, ...]] = ("]",)
    fillers: ClassVar[tuple[str, ...]] = ("<|python_end|>",)
    is_first = True
    begin: ClassVar[str] = "<|python_start|>"
    end: ClassVar[str] = "<|python_end|>"
    written_begin: ClassVar[str] = ""
    written_end: ClassVar[str] = ""

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        begin = skip_space(text, len(self.begin) if text.startswith(self.begin) else 0)
        if begin == len(text):
            return MORE
        if text[begin] != "[" or not _may_be_call(text[begin + 1 :], tools):
            return BROKEN
        end = list_end(text, begin)
        if end is None:
            return MORE
        calls = read_python(text[begin:end])
        if not calls or any(c.name not in tools for c in calls):
            return BROKEN
        follows = skip_space(text, end)
        if text.startswith(self.end, follows):
            return Block(calls, follows + len(self.end))
        return MORE if not is_final and self.end.startswith(text[follows:]) else Block(calls, end)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        bodies = (f"{c.name}({_render_arguments(load(c.arguments))})" for c in calls)
        return f"{self.written_begin}[{', '.join(bodies)}]{self.written_end}"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls. Values are written as JSON, which the parser reads too."""
        bodies = [f"{literal(f'{name}(')} {_arguments_rule(rules, name, schema)} {literal(')')}"
                  for name, schema in tools.items()]  # fmt: skip
        call = rules.add("python-call", either(bodies))
        calls = repeat(call, literal(", "), is_parallel=is_parallel)
        return f"{literal(self.written_begin + '[')} {calls} {literal(']' + self.written_end)}"


class Lfm(Pythonic):
    """The same between markers, anywhere in an answer."""

    name = "lfm"
    openers = ("<|tool_call_start|>",)
    closers = ("]", "<|tool_call_end|>")
    fillers = ()
    is_first = False
    begin = written_begin = "<|tool_call_start|>"
    end = written_end = "<|tool_call_end|>"
    trigger = "<|tool_call_start|>"


def list_end(text: str, start: int) -> int | None:
    """Return where the Python list that begins at `start` ends; None while it is not complete."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character in "\"'":
            end = _string_end(text, position)
            if end is None:
                return None
            position = end
            continue
        if character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return None


def _string_end(text: str, start: int) -> int | None:
    quote = text[start : start + 3] if text[start : start + 3] in _TRIPLES else text[start]
    position = start + len(quote)
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text.startswith(quote, position):
            return position + len(quote)
        else:
            position += 1
    return None


def read_python(text: str) -> list[Call] | None:
    """Return the calls in a Python list of calls with keyword arguments that are literals; None for anything else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.List):
            return None
        return [_read_one(node) for node in tree.elts]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _read_one(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with keyword arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments are unpacked")
        arguments[keyword.arg] = _value(keyword.value, 0)
    text = dump(arguments)
    text.encode()  # half a surrogate pair is no text
    return Call(ast.unparse(node.func), text)


def _value(node: ast.expr, depth: int) -> Any:
    if depth > _NESTING:
        raise ValueError("nested too deeply")
    match node:
        case ast.Name(id="true" | "false" | "null" as name):
            return {"true": True, "false": False, "null": None}[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(i, depth + 1) for i in items]
        case ast.Dict(keys=keys, values=values):
            if any(k is None for k in keys):
                raise ValueError("a dict is unpacked")
            return {str(_value(k, depth + 1)): _value(v, depth + 1) for k, v in zip(keys, values, strict=True) if k}
        case _:
            value = ast.literal_eval(node)
            is_json = value is None or isinstance(value, bool | int | float | str)
            if not is_json or value != value:
                raise ValueError("no JSON value")
            return value


def _may_be_call(text: str, tools: Tools) -> bool:
    """Say whether `text`, after the list's bracket, begins a call of a known function or may yet."""
    text = text.lstrip()
    return any(text.startswith(f"{name}(") or f"{name}(".startswith(text) for name in tools)


def _render_arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _arguments_rule(rules: Rules, name: str, schema: Schema) -> str:
    """Return a body for keyword arguments in the schema's order: first the required ones, then some of the others."""
    required = schema.get("required", [])
    first: list[str] = []
    more: list[str] = []
    for key, of_key in schema.get("properties", {}).items():
        value = rules.schema(f"{rule_name(name)}-{rule_name(key)}", of_key if isinstance(of_key, dict) else {})
        (first if key in required else more).append(f"{literal(f'{key}=')} {value}")
    body = ' ", " '.join(first)
    if not more:
        return body or '""'
    if first:
        return body + " " + " ".join(f'( ", " {m} )?' for m in more)
    tails = [" ".join([more[i], *(f'( ", " {m} )?' for m in more[i + 1 :])]) for i in range(len(more))]
    return f"{either(tails)}?"
