"""Calls as a JSON list after a marker: Granite 3, Phi 4, Command R."""

from typing import ClassVar

from common.formats.contract import Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import literal, repeat
from common.formats.hermes import call_rules, read_json_block, render_call


class JsonList(Syntax):
    """Implements Syntax for one pair of markers."""

    begin: ClassVar[str]
    end: ClassVar[str]
    name_key: ClassVar[str] = "name"
    arguments_key: ClassVar[str] = "arguments"

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        return read_json_block(text, len(self.begin), self.end, is_final=is_final)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        items = (render_call(c, name_key=self.name_key, arguments_key=self.arguments_key) for c in calls)
        return f"{self.begin}[{', '.join(items)}]{self.end}"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        call = call_rules(rules, tools, name_key=self.name_key, arguments_key=self.arguments_key)
        return f"{literal(self.begin + '[')} {repeat(call, literal(', '), is_parallel=is_parallel)} " + literal(
            "]" + self.end
        )


class Granite(JsonList):
    """`<|tool_call|>[{"name": …, "arguments": {…}}]`, Phi 4 with an end marker of its own."""

    name = "granite"
    begin = "<|tool_call|>"
    end = ""
    openers = ("<|tool_call|>",)
    closers = ("]", "}")
    fillers = ("<|/tool_call|>",)
    trigger = "<|tool_call|>"


class CommandR(JsonList):
    """`<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}]<|END_ACTION|>`."""

    name = "command-r"
    begin = "<|START_ACTION|>"
    end = "<|END_ACTION|>"
    openers = ("<|START_ACTION|>",)
    closers = ("<|END_ACTION|>",)
    fillers = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
    trigger = "<|START_ACTION|>"
    name_key = "tool_name"
    arguments_key = "parameters"
