"""Mistral: `[TOOL_CALLS][{…}, …]`, and since Small 3.2 `[TOOL_CALLS]name[ARGS]{…}` for each call."""

import re

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.hermes import call_rules, read_json_block, render_call
from common.formats.json_text import json_end, read_arguments, skip_space

_OPENER = "[TOOL_CALLS]"
_HEAD = re.compile(r"\s*(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\](?P<id>[^\s\[\]{}]*))?\[ARGS\]")
_PARTIAL_HEAD = re.compile(r"\s*[^\s\[\]{}]*(?:\[[A-Z_]*\]?[^\s\[\]{}]*){0,2}")


class Mistral(Syntax):
    """A JSON list of all calls."""

    name = "mistral"
    openers = (_OPENER,)
    closers = ("]", "}")
    inner = ("[ARGS]", "[CALL_ID]")
    trigger = _OPENER

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`; either form is understood."""
        start = len(_OPENER)
        begin = skip_space(text, start)
        if begin == len(text):
            return MORE
        if text[begin] in "[{":
            return read_json_block(text, start, "", is_final=is_final)
        head = _HEAD.match(text, start)
        if head is None:
            return MORE if _PARTIAL_HEAD.fullmatch(text, start) else BROKEN
        return _read_arguments(text, head)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return f"{_OPENER}[{', '.join(render_call(c) for c in calls)}]"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        call = call_rules(rules, tools)
        return f'{literal(_OPENER + "[")} {repeat(call, literal(", "), is_parallel=is_parallel)} "]"'


class MistralArgs(Mistral):
    """A marker, a name and an object for each call."""

    name = "mistral-args"

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "".join(f"{_OPENER}{c.name}[ARGS]{c.arguments}" for c in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'{_OPENER}{name}[ARGS]')} {rules.schema(f'{rule_name(name)}-arguments', schema)}"
            for name, schema in tools.items()
        ]
        return repeat(rules.add("mistral-call", either(bodies)), '""', is_parallel=is_parallel)


def _read_arguments(text: str, head: "re.Match[str]") -> Block | Verdict:
    begin = skip_space(text, head.end())
    if begin == len(text):
        return MORE
    if text[begin] != "{":
        return BROKEN
    end = json_end(text, begin)
    if end is None:
        return MORE
    arguments = read_arguments(text[begin:end])
    return BROKEN if arguments is None else Block([Call(head["name"], arguments)], end)
