"""Calls as `<invoke name="…">` with a tag for each argument, several in one block: MiniMax M2, DeepSeek V3.2 and V4."""

import re
from typing import Any, ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Schema, Tools, Verdict
from common.formats.gbnf import either, literal, repeat
from common.formats.json_text import dump, load, skip_space
from common.formats.tagged import Tagged
from common.formats.values import is_finite, kinds


class Invoke(Tagged):
    """Implements Syntax for one set of tags."""

    begin: ClassVar[str]
    """Opens a block of calls."""
    end: ClassVar[str]
    mark: ClassVar[str] = ""
    """Stands before the name of each tag within."""

    def __init_subclass__(cls) -> None:
        """Make the patterns of a set of tags."""
        mark, ends = re.escape(cls.mark), f"</{re.escape(cls.mark)}"
        cls.head = re.compile(rf'<{mark}invoke name="(?P<name>[^"]+)">\s*')
        cls.key = re.compile(rf'\s*<{mark}parameter name="(?P<key>[^"]*)"(?: string="(?P<string>true|false)")?>')
        cls.value_end = re.compile(rf"{ends}parameter>(?=\s*(?:<{mark}parameter name=|{ends}invoke>))")
        cls.tail = re.compile(rf"\s*{ends}invoke>")

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`; one that was not closed ends with its last call."""
        calls: list[Call] = []
        opener = f'<{self.mark}invoke name="'
        position = last = len(self.begin) if text.startswith(self.begin) else 0
        while True:
            position = skip_space(text, position)
            if text.startswith(self.end, position):
                return Block(calls, position + len(self.end)) if calls else BROKEN
            if not text.startswith(opener, position):
                rest = text[position:]
                if not is_final and (self.end.startswith(rest) or opener.startswith(rest)):
                    return MORE
                return Block(calls, last) if calls else BROKEN
            step = super().read(text[position:], tools, is_final=is_final)
            if not isinstance(step, Block):
                waits = step is MORE and not is_final
                return step if waits or not calls else Block(calls, last)
            calls += step.calls
            last = position = position + step.end

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return f"{self.begin}\n{super().render(calls)}\n{self.end}"

    def _render(self, name: str, arguments: dict[str, Any]) -> str:
        lines = (
            f'<{self.mark}parameter name="{k}"{self._kind(isinstance(v, str))}>{self._written(v)}'
            f"</{self.mark}parameter>\n"
            for k, v in arguments.items()
        )
        return f'<{self.mark}invoke name="{name}">\n{"".join(lines)}</{self.mark}invoke>'

    def member(self, rules: Rules, title: str, key: str, of_key: Any, schema: Schema) -> str:
        """Return a body for one argument."""
        end = f"</{self.mark}parameter>"
        value = rules.bare(title, of_key, end, root=schema)
        begin = f'<{self.mark}parameter name="{key}">'
        return f"{literal(begin)} {value} {literal(end + chr(10))}"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'<{self.mark}invoke name={dump(name)}>{chr(10)}')} {self._members(rules, name, schema)} "
            + literal(f"</{self.mark}invoke>\n")
            for name, schema in tools.items()
        ]
        calls = repeat(rules.add("invoke-call", either(bodies)), '""', is_parallel=is_parallel)
        return f"{literal(self.begin + chr(10))} {calls} {literal(self.end)}"

    def _kind(self, is_text: bool) -> str:
        return ""


class MiniMax(Invoke):
    """M2."""

    name = "minimax"
    begin, end = "<minimax:tool_call>", "</minimax:tool_call>"
    openers = (begin, '<invoke name="')
    closers = (end, "</invoke>")
    trigger = begin


class Dsml(Invoke):
    """DeepSeek V3.2: each argument says whether it is text, or else JSON."""

    name = "dsml"
    mark = "｜DSML｜"
    begin, end = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
    openers = (begin, '<｜DSML｜invoke name="')
    closers = (end, "</｜DSML｜invoke>")
    trigger = begin

    def member(self, rules: Rules, title: str, key: str, of_key: Any, schema: Schema) -> str:
        """Return a body for one argument."""
        is_text = kinds(of_key, schema) == {"string"}
        end = f"</{self.mark}parameter>"
        value = rules.bare(title, of_key, end, root=schema) if is_text else rules.schema(title, of_key, root=schema)
        begin = f'<{self.mark}parameter name="{key}"{self._kind(is_text)}>'
        return f"{literal(begin)} {value} {literal(end + chr(10))}"

    def _value(self, text: str, key: "re.Match[str]", schema: Schema) -> str:
        if key["string"] == "true":
            return dump(text)
        value = load(text)
        is_read = key["string"] == "false" and (value is not None or text.strip() == "null") and is_finite(value)
        return dump(value) if is_read else super()._value(text, key, schema)

    def _kind(self, is_text: bool) -> str:
        return f' string="{str(is_text).lower()}"'


class DsmlTools(Dsml):
    """DeepSeek V4: under another name."""

    name = "dsml-tools"
    begin, end = "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"
    openers = (begin, '<｜DSML｜invoke name="')
    closers = (end, "</｜DSML｜invoke>")
    trigger = begin
