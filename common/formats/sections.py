"""Calls one by one inside a section: DeepSeek R1, V3 and V3.1, Kimi K2."""

import re
from typing import ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import json_end, read_arguments, skip_space


class Section(Syntax):
    """`begin` (`open` name `separator` {…} `close`)… `end`."""

    begin: ClassVar[str]
    end: ClassVar[str]
    open: ClassVar[str]
    separator: ClassVar[str]
    close: ClassVar[str]
    head: ClassVar["re.Pattern[str]"]
    """From `open` to where the arguments begin; its group `name` is the function's."""

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`; a section that was not closed ends with its last call."""
        calls: list[Call] = []
        position = last = len(self.begin) if text.startswith(self.begin) else 0
        while True:
            position = skip_space(text, position)
            if text.startswith(self.end, position):
                return Block(calls, position + len(self.end)) if calls else BROKEN
            if not text.startswith(self.open, position):
                rest = text[position:]
                if not is_final and (self.end.startswith(rest) or self.open.startswith(rest)):
                    return MORE
                return Block(calls, last) if calls else BROKEN
            step = self._read_one(text, position, is_final)
            if isinstance(step, Verdict):
                waits = step is MORE and not is_final
                return step if waits or not calls else Block(calls, last)
            call, position = step
            calls.append(call)
            last = position

    def _read_one(self, text: str, start: int, is_final: bool) -> tuple[Call, int] | Verdict:
        head = self.head.match(text, start)
        if head is None:
            return BROKEN if "{" in text[start:] else MORE
        end = json_end(text, head.end())
        if end is None:
            return MORE
        arguments = read_arguments(text[head.end() : end])
        if arguments is None:
            return BROKEN
        follows = skip_space(text, end)
        for closer in (f"```{self.close}", f"```\n{self.close}", self.close):
            if text.startswith(closer, follows):
                return Call(head["name"], arguments), follows + len(closer)
            if not is_final and closer.startswith(text[follows:]):
                return MORE
        return Call(head["name"], arguments), end

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        bodies = (f"{self.open}{self._title(c.name)}{c.arguments}{self._after()}{self.close}" for c in calls)
        return self.begin + "".join(bodies) + self.end

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(self.open + self._title(name))} {rules.schema(f'{rule_name(name)}-arguments', schema)} "
            + literal(self._after() + self.close)
            for name, schema in tools.items()
        ]
        call = rules.add("section-call", either(bodies))
        return f"{literal(self.begin)} {repeat(call, chr(34) * 2, is_parallel=is_parallel)} {literal(self.end)}"

    def _title(self, name: str) -> str:
        return f"{name}{self.separator}"

    def _after(self) -> str:
        return ""


class DeepSeek(Section):
    """V3.1: the name, the separator, the object."""

    name = "deepseek"
    begin, end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    open, separator, close = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    # Both generations are read: R1 and V3 write the kind before the name, and fence the object.
    head = re.compile(r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?P<old>))?\s*(?P<name>[^\s<{]+)"
                      r"(?(old)\s*(?:```(?:json)?)?|<｜tool▁sep｜>)\s*(?={)")  # fmt: skip
    openers = (begin, open)
    closers = (end, close)
    inner = (separator,)
    trigger = begin


class DeepSeekFenced(DeepSeek):
    """R1 and V3: `function`, the separator, the name, the object between fences."""

    name = "deepseek-fenced"

    def _title(self, name: str) -> str:
        return f"function{self.separator}{name}\n```json\n"

    def _after(self) -> str:
        return "\n```"


class Kimi(Section):
    """K2: `functions.NAME:INDEX`."""

    name = "kimi"
    begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    open, separator, close = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    head = re.compile(
        r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[^\s<{:]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?={)"
    )
    openers = (begin, open)
    closers = (end, close)
    inner = (separator,)
    trigger = begin

    def _title(self, name: str) -> str:
        return f"functions.{name}:0{self.separator}"
