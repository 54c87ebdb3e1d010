"""Calls whose arguments stand in tags one by one: Qwen3-Coder, Nemotron 3, Seed, GLM. Values are read by the schema."""

import json
import re
from typing import Any, ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Schema, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name
from common.formats.json_text import dump
from common.formats.values import coerce, properties


class Tagged(Syntax):
    """Implements Syntax for one set of tags."""

    head: ClassVar["re.Pattern[str]"]
    """From the opener to the first argument; its group `name` is the function's."""
    key: ClassVar["re.Pattern[str]"]
    """From an argument's beginning to its value; its group `key` is the argument's name."""
    value_end: ClassVar["re.Pattern[str]"]
    """After a value: only where an argument or the end follows, so that values may contain the tag."""
    tail: ClassVar["re.Pattern[str]"]
    """After the last argument."""
    gap: ClassVar[str] = ""
    """What stands around each value."""
    writes_members = True

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        head = self.head.match(text)
        if head is None:
            return BROKEN if any(c in text for c in self.closers) else MORE
        schema = tools.get(head["name"], {})
        members: list[str] = []
        position = head.end()
        while (key := self.key.match(text, position)) is not None:
            end = self.value_end.search(text, key.end())
            if end is None:
                return MORE
            members.append(f"{dump(key['key'].strip())}: {self._value(text[key.end() : end.start()], key, schema)}")
            position = end.end()
        tail = self.tail.match(text, position)
        if tail is None:
            return BROKEN if is_final or self._is_stray(text[position:]) else MORE
        # A key that comes twice: the last one counts, as in JSON.
        arguments = json.loads("{" + ", ".join(members) + "}")
        return Block([Call(head["name"], dump(arguments))], tail.end())

    def _value(self, text: str, key: "re.Match[str]", schema: Schema) -> str:
        """Return the JSON value of an argument of the function with this schema."""
        if self.gap:
            text = text.removeprefix(self.gap).removesuffix(self.gap)
        return coerce(text, properties(schema).get(key["key"].strip()), schema)

    @staticmethod
    def _is_stray(rest: str) -> bool:
        rest = rest.lstrip()
        return bool(rest) and not rest.startswith("<")

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "\n".join(self._render(call.name, json.loads(call.arguments)) for call in calls)

    def _render(self, name: str, arguments: dict[str, Any]) -> str:
        raise NotImplementedError

    def _written(self, value: Any) -> str:
        return value if isinstance(value, str) else dump(value)

    def _members(self, rules: Rules, name: str, schema: Schema) -> str:
        """Return a body for the arguments, in the schema's order; those that are not required may be left out."""
        bodies = []
        required = schema.get("required") or []
        for key, of_key in properties(schema).items():
            title = f"{rule_name(name)}-{rule_name(key)}"
            body = rules.add(f"{title}-member", self.member(rules, title, key, of_key, schema))
            bodies.append(body if key in required else f"{body}?")
        return " ".join(bodies)

    def member(self, rules: Rules, title: str, key: str, of_key: Any, schema: Schema) -> str:
        """Return a body for one argument of the function with this schema; `title` names rules made for it."""
        raise NotImplementedError


class QwenXml(Tagged):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`."""

    name = "qwen-xml"
    begin: ClassVar[str] = "<tool_call>"
    end: ClassVar[str] = "</tool_call>"
    openers = ("<tool_call>", "<function=")
    closers = ("</function>", "</tool_call>")
    trigger = "<tool_call>"
    head = re.compile(r"(?:<tool_call>\s*)?<function=(?P<name>[^>\s]+)>\s*")
    key = re.compile(r"\s*<parameter=(?P<key>[^>]+)>")
    value_end = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>))")
    tail = re.compile(r"\s*</function>(?:\s*</tool_call>)?")
    gap = "\n"

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`; the outer tag is optional, and so is its end."""
        block = super().read(text, tools, is_final=is_final)
        if isinstance(block, Block) and not is_final and not text[: block.end].endswith(self.end):
            rest = text[block.end :].lstrip()
            if text.startswith(self.begin) and self.end.startswith(rest):
                return MORE
        return block

    def _render(self, name: str, arguments: dict[str, Any]) -> str:
        lines = (f"<parameter={k}>{self.gap}{self._written(v)}{self.gap}</parameter>\n" for k, v in arguments.items())
        return f"{self.begin}\n<function={name}>\n{''.join(lines)}</function>\n{self.end}"

    def member(self, rules: Rules, title: str, key: str, of_key: Any, schema: Schema) -> str:
        """Return a body for one argument."""
        end = f"{self.gap}</parameter>"
        value = rules.bare(title, of_key, end, root=schema)
        return f"{literal(f'<parameter={key}>{self.gap}')} {value} {literal(end + chr(10))}"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'{self.begin}{chr(10)}<function={name}>{chr(10)}')} {self._members(rules, name, schema)} "
            + literal(f"</function>\n{self.end}")
            for name, schema in tools.items()
        ]
        return repeat(rules.add("qwen-call", either(bodies)), '"\\n"', is_parallel=is_parallel)


class SeedXml(QwenXml):
    """Seed-OSS: the same in a tag of its own, without line ends around values."""

    name = "seed-xml"
    begin, end = "<seed:tool_call>", "</seed:tool_call>"
    openers = ("<seed:tool_call>", "<function=")
    closers = ("</function>", "</seed:tool_call>")
    trigger = "<seed:tool_call>"
    head = re.compile(r"(?:<seed:tool_call>\s*)?<function=(?P<name>[^>\s]+)>\s*")
    tail = re.compile(r"\s*</function>(?:\s*</seed:tool_call>)?")
    gap = ""


class Glm(Tagged):
    """`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`."""

    name = "glm"
    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    inner = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    trigger = "<tool_call>"
    head = re.compile(r"<tool_call>\s*(?P<name>[^\s<{]+)\s*(?=<arg_key>|</tool_call>)")
    key = re.compile(r"\s*<arg_key>(?P<key>[^<]*)</arg_key>\s*<arg_value>")
    value_end = re.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>))")
    tail = re.compile(r"\s*</tool_call>")

    def _render(self, name: str, arguments: dict[str, Any]) -> str:
        lines = (f"<arg_key>{k}</arg_key>\n<arg_value>{self._written(v)}</arg_value>\n" for k, v in arguments.items())
        return f"<tool_call>{name}\n{''.join(lines)}</tool_call>"

    def member(self, rules: Rules, title: str, key: str, of_key: Any, schema: Schema) -> str:
        """Return a body for one argument."""
        begin, end = f"<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>"
        return f"{literal(begin)} {rules.bare(title, of_key, end, root=schema)} {literal(end + chr(10))}"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'<tool_call>{name}{chr(10)}')} {self._members(rules, name, schema)} {literal('</tool_call>')}"
            for name, schema in tools.items()
        ]
        return repeat(rules.add("glm-call", either(bodies)), '"\\n"', is_parallel=is_parallel)
