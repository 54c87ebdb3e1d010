"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Also given to templates without tools."""

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Syntax, Tools, Verdict
from common.formats.gbnf import SPACE, either, literal, repeat, rule_name
from common.formats.json_text import dump, json_end, read_calls, skip_space


def read_json_block(text: str, start: int, closer: str, *, is_final: bool) -> Block | Verdict:
    """Return the calls in the JSON from `start` on, and where they and an optional `closer` end."""
    begin = skip_space(text, start)
    if begin == len(text):
        return MORE
    if text[begin] not in "{[":
        return BROKEN
    end = json_end(text, begin)
    if end is None:
        return MORE
    calls = read_calls(text[begin:end])
    if calls is None:
        return BROKEN
    follows = skip_space(text, end)
    if text.startswith(closer, follows):
        return Block(calls, follows + len(closer))
    if not is_final and closer.startswith(text[follows:]):
        return MORE
    return Block(calls, end)


def call_rules(rules: Rules, tools: Tools, *, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """Return a rule for the JSON object of one call of any of the tools."""
    bodies = []
    for name, schema in tools.items():
        arguments = rules.schema(f"{rule_name(name)}-arguments", schema)
        head = literal(f'{{"{name_key}": {dump(name)}, "{arguments_key}": ')
        bodies.append(rules.add(f"{rule_name(name)}-call", f'{head} {arguments} "}}"'))
    return rules.add("call-object", either(bodies))


def render_call(call: Call, *, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """Return a call as a JSON object."""
    return f'{{"{name_key}": {dump(call.name)}, "{arguments_key}": {call.arguments}}}'


class Hermes(Syntax):
    """Implements Syntax."""

    name = "hermes"
    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    trigger = "<tool_call>"

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        return read_json_block(text, len(self.openers[0]), self.closers[0], is_final=is_final)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "\n".join(f"<tool_call>\n{render_call(call)}\n</tool_call>" for call in calls)

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        call = rules.add("hermes-call", f'"<tool_call>\\n" {call_rules(rules, tools)} "\\n</tool_call>"')
        return repeat(call, SPACE, is_parallel=is_parallel)
