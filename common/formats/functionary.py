"""Functionary: 3.1 `<function=NAME>{…}</function>`; 3.2 `NAME` line `{…}`, `>>>` between messages, `all` for text."""

import re

from common.formats.contract import BROKEN, MORE, Block, Call, Content, Delta, Parser, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import json_end, read_arguments, skip_space

_NEXT = ">>>"
_ALL = "all\n"
_HEAD = re.compile(r"<function=(?P<name>[^>\s{]+)>\s*")


class FunctionTag(Syntax):
    """Version 3.1."""

    name = "function-tag"
    openers = ("<function=",)
    closers = ("</function>",)
    trigger = "<function="

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        head = _HEAD.match(text)
        if head is None or head.end() == len(text):
            return BROKEN if "{" in text or "\n" in text.rstrip() else MORE
        if text[head.end()] != "{":
            return BROKEN
        end = json_end(text, head.end())
        if end is None:
            return MORE
        arguments = read_arguments(text[head.end() : end])
        if arguments is None:
            return BROKEN
        follows = skip_space(text, end)
        calls = [Call(head["name"], arguments)]
        if text.startswith("</function>", follows):
            return Block(calls, follows + len("</function>"))
        return MORE if not is_final and "</function>".startswith(text[follows:]) else Block(calls, end)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "\n".join(f"<function={c.name}>{c.arguments}</function>" for c in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'<function={name}>')} {rules.schema(f'{rule_name(name)}-arguments', schema)} "
            + literal("</function>")
            for name, schema in tools.items()
        ]
        return repeat(rules.add("function-call", either(bodies)), '"\\n"', is_parallel=is_parallel)


class FunctionaryParser:
    """Implements Parser for 3.2. A message whose first line names no known function is text."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._heads = (_ALL, *(f"{name}\n" for name in tools))
        self._held = ""
        self._state = "head"

    @property
    def is_thinking(self) -> bool:
        """Whether what was read so far ends within reasoning."""
        return False

    def push(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain by now."""
        self._held += text
        return self._drain(is_final=False)

    def finish(self) -> list[Delta]:
        """Return the rest."""
        return self._drain(is_final=True)

    def _drain(self, *, is_final: bool) -> list[Delta]:
        out: list[Delta] = []
        while self._held:
            if self._state == "head":
                goes_on = self._read_head(is_final)
            elif self._state == "call":
                goes_on = self._read_call(out, is_final)
            else:
                goes_on = self._read_text(out, is_final)
            if not goes_on:
                break
        return out

    def _read_head(self, is_final: bool) -> bool:
        text = self._held
        if text.startswith(_NEXT):
            self._held = text[len(_NEXT) :]
            return True
        if not is_final and (_NEXT.startswith(text) or any(h.startswith(text) for h in self._heads)):
            return False
        head = next((h for h in self._heads if text.startswith(h)), None)
        if head is None or head == _ALL:
            self._held = text[len(head or "") :]
            self._state = "text"
        else:
            self._state = "call"
        return True

    def _read_call(self, out: list[Delta], is_final: bool) -> bool:
        name, _, rest = self._held.partition("\n")
        begin = skip_space(rest, 0)
        if begin == len(rest) and not is_final:
            return False
        end = json_end(rest, begin) if rest[begin : begin + 1] == "{" else None
        if end is None and rest[begin : begin + 1] == "{" and not is_final:
            return False
        arguments = None if end is None else read_arguments(rest[begin:end])
        if arguments is None or end is None:
            self._state = "text"
            return True
        out.append(Call(name, arguments))
        self._held, self._state = rest[end:], "after"
        return True

    def _read_text(self, out: list[Delta], is_final: bool) -> bool:
        if self._state == "after":
            self._held = self._held.lstrip()  # between messages
            if not self._held:
                return False
        at = self._held.find(_NEXT)
        shown = at if at >= 0 else len(self._held) if is_final else self._safe_length()
        if shown:
            out.append(Content(self._held[:shown]))
            self._state = "text"
        self._held = self._held[shown:]
        if at < 0:
            return False
        self._state = "head"
        return True

    def _safe_length(self) -> int:
        kept = next((n for n in (2, 1) if self._held.endswith(_NEXT[:n])), 0)
        return len(self._held) - kept


class Functionary(Syntax):
    """Version 3.2; it has a parser of its own."""

    name = "functionary"
    openers = (_NEXT,)
    closers = ("}",)

    def parser(self, tools: Tools) -> Parser:
        """Return a parser for one answer."""
        return FunctionaryParser(tools)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them, after the prompt's own marker."""
        return _NEXT.join(f"{c.name}\n{c.arguments}" for c in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            literal(name + "\n") + " " + rules.schema(f"{rule_name(name)}-arguments", schema)
            for name, schema in tools.items()
        ]
        return repeat(rules.add("functionary-call", either(bodies)), literal(_NEXT), is_parallel=is_parallel)

    def answer(self, body: str) -> str:
        """Return the body of a rule for an answer whose text is held to `body`."""
        return f"{literal(_ALL)} {body}"
