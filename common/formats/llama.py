"""Llama 3: an answer that is nothing but `{"name": …, "parameters": {…}}`; several are separated by semicolons."""

import re

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import repeat
from common.formats.hermes import call_rules, render_call
from common.formats.json_text import json_end, read_calls, skip_space

_TAG = "<|python_tag|>"
_KEYS = ("name", "type", "function", "parameters", "arguments")
_FIRST_KEY = re.compile(r'\{\s*"(?P<key>[^"\\]*)"')
_PARTIAL_KEY = re.compile(r'\{\s*(?:"[^"\\]*)?')


class LlamaJson(Syntax):
    """Implements Syntax. Since any JSON looks alike, only known functions are calls."""

    name = "llama-json"
    openers = ("{", _TAG)
    closers = ("}",)
    is_first = True

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        begin = skip_space(text, len(_TAG) if text.startswith(_TAG) else 0)
        if begin == len(text):
            return MORE
        key = _FIRST_KEY.match(text, begin)
        if key is None:
            return MORE if _PARTIAL_KEY.fullmatch(text, begin) else BROKEN
        if key["key"] not in _KEYS:
            return BROKEN
        end = json_end(text, begin)
        if end is None:
            return MORE
        calls = read_calls(text[begin:end])
        if calls is None or any(c.name not in tools for c in calls):
            return BROKEN
        follows = skip_space(text, end)
        if text.startswith(";", follows):
            return Block(calls, follows + 1)
        return Block(calls, end) if is_final or follows < len(text) else MORE

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "; ".join(render_call(c, arguments_key="parameters") for c in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        return repeat(call_rules(rules, tools, arguments_key="parameters"), '"; "', is_parallel=is_parallel)
