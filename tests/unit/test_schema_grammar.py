import json
import re
from typing import Any

import pytest

from common.errors import Code, RequestError
from neuron.prep.grammar import lint
from neuron.prep.numbers import integer_range
from neuron.prep.schema import SchemaRules, object_grammar, schema_grammar


def grammar(schema: Any) -> str:
    text = schema_grammar(schema, "f")
    lint(text)
    return text


def matches(body: str, text: str) -> bool:
    """Say whether a body without references takes a text; its notation is nearly that of regular expressions."""
    pattern = re.sub(r'"((?:[^"\\]|\\.)*)"|(\[(?:[^\]\\]|\\.)*\])| ', _as_pattern, body)
    return re.fullmatch(pattern, text) is not None


def _as_pattern(match: re.Match[str]) -> str:
    if match[1] is not None:
        return re.escape(match[1].replace('\\"', '"').replace("\\\\", "\\"))
    return match[2] or ""


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 9), (5, 130), (18, 18), (-5, 130), (-130, -7), (99, 1001), (-3, 0), (None, 12), (7, None)],
)
def test_integers_between_bounds_and_no_others(low: int | None, high: int | None) -> None:
    body = integer_range(low, high)
    for number in range(-1100, 1100):
        is_in = (low is None or number >= low) and (high is None or number <= high)
        assert matches(body, str(number)) == is_in, (number, body)
    assert not matches(body, "00")
    assert not matches(body, "-0")


def test_properties_come_in_their_order_and_optional_ones_may_be_left_out() -> None:
    text = grammar({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["b"]})
    assert r'"\"a\"" ws ":" ws null' in text
    assert r'"\"b\"" ws ":" ws null' in text


def test_strings_without_a_length_get_one() -> None:
    assert "char{256}" in grammar({"type": "string"})
    assert "char*" not in grammar({"type": "string"})
    assert r'answer ::= "\"" char{2} char{0,3} "\""' in grammar({"type": "string", "minLength": 2, "maxLength": 5})


def test_a_recursive_schema_is_a_recursive_grammar() -> None:
    tree = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    }
    grammar(tree)
    defs = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    grammar(defs)


@pytest.mark.parametrize("value", ["a\\b", 'say "x"', "line\nend", 1, 1.5, None, True, {"a": [1]}, "ü"])
def test_constants_are_written_as_json(value: Any) -> None:
    text = grammar({"const": value})
    (body,) = re.findall(r"^answer ::= (.*)$", text, re.MULTILINE)
    assert matches(body, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[a-z]{3}-\\d+$", ["abc-1", "xyz-22"], ["ab-1", "abc-"]),
        ("^(red|green)?$", ["", "red"], ["blue"]),
        ("^a\\.b$", ["a.b"], ["axb"]),
        ("^[^0-9]x*$", ["a", "axx"], ["1", '"', "\\"]),
        ('^say "hi"$', ['say \\"hi\\"'], ['say "hi"']),
        ("^\\w+@\\w+\\.(com|org)$", ["a_b@c.org"], ["a@b.net"]),
    ],
)
def test_patterns_hold_inside_json(pattern: str, good: list[str], bad: list[str]) -> None:
    text = grammar({"type": "string", "pattern": pattern})
    (body,) = re.findall(r"^answer ::= (.*)$", text, re.MULTILINE)
    for inside in good:
        assert matches(body, f'"{inside}"'), (body, inside)
    for inside in bad:
        assert not matches(body, f'"{inside}"'), (body, inside)


def test_any_object_passes_the_linter() -> None:
    lint(object_grammar())


@pytest.mark.parametrize(
    ("schema", "path", "reason"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "f.properties.a.not", "cannot be enforced"),
        ({"type": "array", "uniqueItems": True}, "f.uniqueItems", "cannot be enforced"),
        ({"type": "whatever"}, "f.type", "must be one of object, array"),
        ({"type": "object", "properties": []}, "f.properties", "must be an object"),
        ({"type": "object", "required": "a"}, "f.required", "must be a list of names"),
        ({"type": "object", "required": ["b"], "additionalProperties": False}, "f.required", "which properties lacks"),
        ({"$ref": "https://example.com/x"}, "f.$ref", "must point into the schema itself"),
        ({"$ref": "#/$defs/x"}, "f.$ref", "points to nothing"),
        ({"type": "string", "pattern": "a+"}, "f.pattern", "must begin with \\^ and end with \\$"),
        ({"type": "string", "pattern": "^(a$"}, "f.pattern", "is no regular expression"),
        ({"type": "string", "pattern": "^(?=a)a$"}, "f.pattern", "cannot express"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "f.minLength", "at most maxLength"),
        ({"type": "string", "maxLength": -1}, "f.maxLength", "whole number"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "f", "no integer from 5 to 2"),
        ({"type": "number", "maximum": 2}, "f.maximum", "cannot be enforced"),
        ({"enum": []}, "f.enum", "non-empty list"),
        ({"anyOf": [{"type": "null"}, 3]}, "f.anyOf[1]", "must be a JSON schema"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "f.allOf[1].type", "contradicts"),
        (False, "f", "allows nothing"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_path(schema: Any, path: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        schema_grammar(schema, "f")
    assert (caught.value.code, caught.value.param) == (Code.INVALID_VALUE, path)


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested more than 64 deep"):
        schema_grammar(schema, "f")


def test_a_grammar_may_take_several_schemas_beside_rules_of_its_own() -> None:
    rules = SchemaRules("tools")
    first = rules.schema(
        "x-arguments", {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "null"}}}
    )
    second = rules.schema(
        "x-arguments",
        {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "boolean"}}},
    )
    call = rules.add("call", f'"<call>" ( {first} | {second} )')
    assert first != second
    lint(rules.render(call))


def test_a_schema_that_doubles_at_every_level_is_refused_soon() -> None:
    """Twice the next definition in each, merged, so that none is the same rule twice."""
    depth = 30
    parts: dict[str, Any] = {f"d{depth}": {"type": "null"}}
    for level in range(depth):
        following = {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}]}
        parts[f"d{level}"] = {"type": "object", "properties": {"a": following, "b": following}}
    with pytest.raises(RequestError, match="more than 5000 parts"):
        schema_grammar({"$ref": "#/$defs/d0", "$defs": parts}, "f")


def test_a_type_named_twice_is_one() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(20):
        schema = {"type": ["object", "object"], "properties": {"a": schema}}
    grammar(schema)
