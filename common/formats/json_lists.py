"""Calls as a JSON list after a marker: Granite 3, Phi 4, Firefunction, Nemotron, Apriel, MiniMax M1, Command R."""

import re
from typing import ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import literal, repeat
from common.formats.hermes import call_rules, read_json_block, render_call
from common.formats.json_text import json_end, read_calls, skip_space


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


class Functools(JsonList):
    """`functools[{"name": …, "arguments": {…}}]`."""

    name = "functools"
    begin = "functools"
    end = ""
    openers = ("functools[",)
    closers = ("]",)
    trigger = "functools["


class Nemotron(JsonList):
    """Nano 2: `<TOOLCALL>[{"name": …, "arguments": {…}}]</TOOLCALL>`."""

    name = "nemotron"
    begin = "<TOOLCALL>"
    end = "</TOOLCALL>"
    openers = ("<TOOLCALL>",)
    closers = ("</TOOLCALL>",)
    trigger = "<TOOLCALL>"


class ToolCalls(JsonList):
    """Apriel: `<tool_calls>[{…}]</tool_calls>`; MiniMax M1 writes the objects in lines, without the list."""

    name = "tool-calls"
    begin = "<tool_calls>"
    end = "</tool_calls>"
    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)
    trigger = "<tool_calls>"

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        calls: list[Call] = []
        position = skip_space(text, len(self.begin))
        while position < len(text) and text[position] in "{[":
            end = json_end(text, position)
            found = None if end is None else read_calls(text[position:end])
            if end is None or found is None:
                return MORE if end is None else BROKEN
            calls += found
            last, position = end, skip_space(text, end)
        rest = text[position:]
        if rest.startswith(self.end) and calls:
            return Block(calls, position + len(self.end))
        if not is_final and (not rest or self.end.startswith(rest)):
            return MORE
        return Block(calls, last) if calls else BROKEN


class CommandRPlus(JsonList):
    """The first Command R, and R+: ``Action:`` and a fenced JSON list."""

    name = "command-r-plus"
    begin = "Action:\n```json\n"
    end = "```"
    openers = ("Action:",)
    closers = ("```",)
    trigger = "Action:"
    name_key = "tool_name"
    arguments_key = "parameters"
    head = re.compile(r"Action:\s*```json\s*(?=\[)")
    partial = re.compile(r"Action:\s*(?:`|``|```|```j|```js|```jso|```json\s*)?")

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        head = self.head.match(text)
        if head is None:
            return MORE if self.partial.fullmatch(text) else BROKEN
        return read_json_block(text, head.end(), self.end, is_final=is_final)


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

    def answer(self, body: str) -> str:
        """Return the body of a rule for an answer whose text is held to `body`."""
        return f'( "<|START_RESPONSE|>" | "<|START_TEXT|>" )? {body}'
