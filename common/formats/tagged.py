"""Calls whose arguments stand in tags one by one: Qwen3-Coder, Nemotron 3, GLM 4.5. Values are read by the schema."""

import json
import re
from typing import Any, ClassVar

from common.formats.contract import BROKEN, MORE, Block, Call, Rules, Schema, Syntax, Tools, Verdict
from common.formats.gbnf import either, literal, repeat, rule_name, until
from common.formats.json_text import dump, load

_LITERALS = {"True": "true", "False": "false", "None": "null"}
"""Models that were trained on Python write these."""


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
    is_padded: ClassVar[bool] = False
    """Whether a line end stands around each value."""

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`."""
        head = self.head.match(text)
        if head is None:
            return BROKEN if any(c in text for c in self.closers) else MORE
        schema = tools.get(head["name"], {}).get("properties", {})
        members: list[str] = []
        position = head.end()
        while (key := self.key.match(text, position)) is not None:
            end = self.value_end.search(text, key.end())
            if end is None:
                return MORE
            name = key["key"].strip()
            of_key = schema.get(name) if isinstance(schema, dict) else None
            members.append(f"{dump(name)}: {self._value(text[key.end() : end.start()], of_key)}")
            position = end.end()
        tail = self.tail.match(text, position)
        if tail is None:
            return BROKEN if is_final or self._is_stray(text[position:]) else MORE
        # A key that comes twice: the last one counts, as in JSON.
        arguments = json.loads("{" + ", ".join(members) + "}")
        return Block([Call(head["name"], dump(arguments))], tail.end())

    def _value(self, text: str, schema: Any) -> str:
        if self.is_padded:
            text = text.removeprefix("\n").removesuffix("\n")
        return coerce(text, schema if isinstance(schema, dict) else {})

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
        required = schema.get("required", [])
        for key, of_key in schema.get("properties", {}).items():
            value = _value_rule(rules, f"{rule_name(name)}-{rule_name(key)}", of_key, self.value_marker())
            body = rules.add(f"{rule_name(name)}-{rule_name(key)}-member", self.member(key, value))
            bodies.append(body if key in required else f"{body}?")
        return " ".join(bodies)

    def member(self, key: str, value: str) -> str:
        """Return a body for one argument with a value's rule."""
        raise NotImplementedError

    def value_marker(self) -> str:
        """Return the text that a value cannot contain."""
        raise NotImplementedError


class QwenXml(Tagged):
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`."""

    name = "qwen-xml"
    openers = ("<tool_call>", "<function=")
    closers = ("</function>", "</tool_call>")
    trigger = "<tool_call>"
    head = re.compile(r"(?:<tool_call>\s*)?<function=(?P<name>[^>\s]+)>\s*")
    key = re.compile(r"\s*<parameter=(?P<key>[^>]+)>")
    value_end = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>))")
    tail = re.compile(r"\s*</function>(?:\s*</tool_call>)?")
    is_padded = True

    def read(self, text: str, tools: Tools, *, is_final: bool) -> Block | Verdict:
        """Return the block at the beginning of `text`; the outer tag is optional, and so is its end."""
        block = super().read(text, tools, is_final=is_final)
        if isinstance(block, Block) and not is_final and not text[: block.end].endswith("</tool_call>"):
            rest = text[block.end :].lstrip()
            if text.startswith("<tool_call>") and "</tool_call>".startswith(rest):
                return MORE
        return block

    def _render(self, name: str, arguments: dict[str, Any]) -> str:
        lines = (f"<parameter={k}>\n{self._written(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"

    def member(self, key: str, value: str) -> str:
        """Return a body for one argument."""
        return f"{literal(f'<parameter={key}>' + chr(10))} {value} {literal(chr(10) + '</parameter>' + chr(10))}"

    def value_marker(self) -> str:
        """Return the text that a value cannot contain."""
        return "\n</parameter>"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'<tool_call>{chr(10)}<function={name}>{chr(10)}')} {self._members(rules, name, schema)} "
            + literal("</function>\n</tool_call>")
            for name, schema in tools.items()
        ]
        return repeat(rules.add("qwen-call", either(bodies)), '"\\n"', is_parallel=is_parallel)


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

    def member(self, key: str, value: str) -> str:
        """Return a body for one argument."""
        begin = f"<arg_key>{key}</arg_key>\n<arg_value>"
        return f"{literal(begin)} {value} {literal('</arg_value>' + chr(10))}"

    def value_marker(self) -> str:
        """Return the text that a value cannot contain."""
        return "</arg_value>"

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for calls."""
        bodies = [
            f"{literal(f'<tool_call>{name}{chr(10)}')} {self._members(rules, name, schema)} {literal('</tool_call>')}"
            for name, schema in tools.items()
        ]
        return repeat(rules.add("glm-call", either(bodies)), '"\\n"', is_parallel=is_parallel)


def coerce(text: str, schema: Schema) -> str:
    """Return the JSON value that a tag's text stands for: what the schema says, text where it says nothing."""
    kinds = _kinds(schema)
    if not kinds or kinds == {"string"}:
        return dump(text)
    plain = text.strip()
    plain = _LITERALS.get(plain, plain)
    value = load(plain)
    if (value is None and plain != "null") or not _is_finite(plain):
        return dump(text)
    if isinstance(value, str) and "string" in kinds:
        return dump(text)
    if "string" in kinds and _kind(value) not in kinds:
        return dump(text)
    return dump(value)


def _is_finite(text: str) -> bool:
    return not any(word in text for word in ("NaN", "Infinity"))


def _kinds(schema: Schema) -> set[str]:
    """Return the JSON types that a schema allows; empty where it does not say."""
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return {k for k in given if isinstance(k, str)}
    kinds: set[str] = set()
    for word in ("anyOf", "oneOf"):
        for option in schema.get(word) or []:
            if isinstance(option, dict):
                kinds |= _kinds(option)
    values = [*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])]
    kinds |= {_kind(v) for v in values}
    return kinds or ({"object"} if "$ref" in schema or "properties" in schema else set())


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _value_rule(rules: Rules, name: str, schema: Any, marker: str) -> str:
    """Return a rule for a value between tags: text as it is, everything else as JSON."""
    if not isinstance(schema, dict) or _kinds(schema) <= {"string"}:
        choices = schema.get("enum") if isinstance(schema, dict) else None
        if choices and all(isinstance(c, str) for c in choices):
            return rules.add(f"{name}-value", either(literal(c) for c in choices))
        return rules.add(f"{name}-value", until(marker))
    return rules.schema(f"{name}-value", schema)
