"""Calls as a Python list, `[f(a=1, b="x"), g()]`: Llama 3.2 and 4, LFM 2."""

import ast
import math
import re
import unicodedata
import warnings
from keyword import iskeyword
from typing import Any, ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Schema, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import dump, load, skip_space
from common.formats.values import properties

_TRIPLES = ('"""', "'''")
_NESTING = 64
_NAME = re.compile(r"[^\s()\[\]{},'\"=]+(?=\()")


class Pythonic(Syntax):
    """Implements Syntax for a list at the beginning of an answer. Only known functions are calls."""

    name = "pythonic"
    openers: ClassVar[tuple[str, ...]] = ("[", "<|python_start|>")
    closers: ClassVar[tuple[str, ...]] = ("]",)
    fillers: ClassVar[tuple[str, ...]] = ("<|python_end|>",)
    is_first = True
    writes_members = True
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
    calls: list[Call] = []
    position = skip_space(text, 1)
    while not text.startswith("]", position):
        # Names are no identifiers of Python's: those of many tools have hyphens.
        head = _NAME.match(text, position)
        end = None if head is None else list_end(text, head.end())
        if head is None or end is None:
            return None
        arguments = _read_arguments(text[head.end() : end])
        if arguments is None:
            return None
        calls.append(Call(head[0], arguments))
        position = skip_space(text, end)
        if text.startswith(",", position):
            position = skip_space(text, position + 1)
        elif not text.startswith("]", position):
            return None
    return calls


def _read_arguments(text: str) -> str | None:
    """Return what stands between a call's parentheses as a JSON object."""
    arguments: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes before letters that need none, as in regular expressions
            tree = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            return None
        for keyword in tree.keywords:
            value = _value(keyword.value, 0)
            if keyword.arg is not None:
                arguments[keyword.arg] = value
            elif isinstance(value, dict):
                arguments |= value
            else:
                return None
        found = dump(arguments)
        found.encode()  # half a surrogate pair is no text
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return found


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
            if not is_json or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError("no JSON value")
            return value


def _may_be_call(text: str, tools: Tools) -> bool:
    """Say whether `text`, after the list's bracket, begins a call of a known function or may yet."""
    text = text.lstrip()
    return any(text.startswith(f"{name}(") or f"{name}(".startswith(text) for name in tools)


def _render_arguments(arguments: dict[str, Any]) -> str:
    parts = (f"{k}={v!r}" if _is_keyword(k) else f"**{ ({k: v})!r}" for k, v in arguments.items())
    return ", ".join(parts)


def _is_keyword(name: str) -> bool:
    """Say whether an argument's name may stand before `=`; Python takes some letters for others there."""
    return name.isidentifier() and not iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def _arguments_rule(rules: Rules, name: str, schema: Schema) -> str:
    """Return a body for keyword arguments in the schema's order: first the required ones, then some of the others."""
    required = schema.get("required") or []
    first: list[str] = []
    more: list[str] = []
    for key, of_key in properties(schema).items():
        value = rules.schema(f"{rule_name(name)}-{rule_name(key)}", of_key, root=schema)
        body = f"{literal(f'{key}=')} {value}" if _is_keyword(key) else f'{literal(f"**{{{dump(key)}: ")} {value} "}}"'
        (first if key in required else more).append(body)
    body = ' ", " '.join(first)
    if not more:
        return body or '""'
    if first:
        return body + " " + " ".join(f'( ", " {m} )?' for m in more)
    tails = [" ".join([more[i], *(f'( ", " {m} )?' for m in more[i + 1 :])]) for i in range(len(more))]
    return f"{either(tails)}?"
