"""Values that stand between tags as bare text: what a schema says they are. Pure."""

import json
from typing import Any

from common.formats.json_text import dump, load

_LITERALS = {"True": "true", "False": "false", "None": "null"}
"""Models that were trained on Python write these."""
_HOPS = 16
"""References that point to references; more go round in a circle."""
_PARTS = 256
"""Of one schema; one with more says nothing about its values."""


def properties(schema: Any) -> dict[str, Any]:
    """Return the schemas of a function's arguments, those that are only required by name among them."""
    if not isinstance(schema, dict):
        return {}
    declared, required = schema.get("properties"), schema.get("required")
    known = dict(declared) if isinstance(declared, dict) else {}
    for name in required if isinstance(required, list) else ():
        if isinstance(name, str):
            known.setdefault(name, schema.get("additionalProperties", True))
    return known


def resolve(schema: Any, root: Any) -> dict[str, Any]:
    """Return what a schema's `$ref` points to in `root`, or the schema itself; {} where that is none."""
    for _ in range(_HOPS):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        target: Any = root
        for step in schema["$ref"].split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        schema = target
    return schema if isinstance(schema, dict) else {}


def options(schema: Any, root: Any) -> list[dict[str, Any]]:
    """Return the schemas of which a value fits one: those of anyOf and oneOf, else the schema itself."""
    found: list[dict[str, Any]] = []
    waiting = [schema]
    for _ in range(_PARTS):
        if not waiting:
            return found
        each = resolve(waiting.pop(), root)
        several = next((each[word] for word in ("anyOf", "oneOf") if isinstance(each.get(word), list)), None)
        one = each.get("allOf")
        if several is None and isinstance(one, list) and len(one) == 1 and "type" not in each:
            several = one
        if several is None:
            found.append(each)
        else:
            waiting += reversed(several)
    return [{}]


def kinds(schema: Any, root: Any) -> set[str]:
    """Return the JSON types that a schema allows; empty where it does not say."""
    found: set[str] = set()
    for option in options(schema, root):
        given = option.get("type")
        listed = _listed(option)
        if isinstance(given, str):
            found.add(given)
        elif isinstance(given, list):
            found |= {k for k in given if isinstance(k, str)}
        elif listed:
            found |= {kind(v) for v in listed}
        elif "properties" in option or "allOf" in option:
            found.add("object")
        elif "items" in option:
            found.add("array")
        else:
            return set()
    return found


def coerce(text: str, schema: Any, root: Any) -> str:
    """Return the JSON value that a tag's text stands for: what the schema says, text where it says nothing."""
    allowed = kinds(schema, root)
    if not allowed or allowed == {"string"}:
        return dump(text)
    if "string" in allowed and any(text == v for option in options(schema, root) for v in _listed(option)):
        return dump(text)
    plain = text.strip()
    plain = _LITERALS.get(plain, plain)
    value = load(plain)
    if (value is None and plain != "null") or not is_finite(value):
        return dump(text)
    if "string" in allowed and (isinstance(value, str) or not _fits(value, allowed)):
        return dump(text)
    return dump(value)


def kind(value: Any) -> str:
    """Return the JSON type of a value."""
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


def _fits(value: Any, allowed: set[str]) -> bool:
    return kind(value) in allowed or (kind(value) == "integer" and "number" in allowed)


def _listed(schema: dict[str, Any]) -> list[Any]:
    """Return the values that a schema names."""
    named = schema.get("enum")
    return [*(named if isinstance(named, list) else []), *([schema["const"]] if "const" in schema else [])]


def is_finite(value: Any) -> bool:
    """Say whether JSON has words for the value: none for NaN and the infinities, which Python reads and writes."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
