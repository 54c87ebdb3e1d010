"""JSON Schema to GBNF. Pure.

What the grammar allows always fits the schema; it may be narrower: properties come in the schema's order, undeclared
ones only where none is declared. A keyword that cannot be kept is refused by its path, never left out in silence.
"""

import json
from typing import Any

from common.errors import Code, RequestError
from neuron.prep.numbers import integer_range
from neuron.prep.pattern import UnsupportedPattern, translate
from neuron.prep.rules import CHARACTERS, FORMATS, RuleSet, literal

DEPTH = 64
VISITS = 5_000
"""Of subschemas; those that others point to count each time they are merged."""
LEAD = '( " " | "\\n"{1,2} )? '
"""What a model may put before its JSON."""

_ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment", "$defs", "definitions", "$anchor", "contentEncoding", "contentMediaType", "discriminator", "strict",
})  # fmt: skip
_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
_IGNORED = {"integer": {"format"}, "number": {"format"}}
"""`int32`, `double` and the like say nothing JSON Schema would enforce."""


class SchemaRules(RuleSet):
    """A grammar in the making that takes schemas."""

    def __init__(self, field: str) -> None:
        """`field` names the schema in errors."""
        super().__init__()
        self.field = field
        self._root: Any = None
        self._references: dict[str, str] = {}
        self._visits = 0

    def schema(self, name: str, schema: Any, path: str | None = None, *, root: Any = None) -> str:
        """Add a rule for the JSON values that fit a schema and return its name. Raises RequestError naming the path.

        `root`: what references point into; None: the schema itself.
        """
        self._root, self._references = (schema if root is None else root), {}
        return self._visit(schema, name, self.field if path is None else path, 0)

    def _visit(self, schema: Any, name: str, path: str, depth: int) -> str:
        self._visits += 1
        if self._visits > VISITS:
            raise refusal(self.field, f"has more than {VISITS} parts")
        if depth > DEPTH:
            raise refusal(path, f"is nested more than {DEPTH} deep")
        if schema is True or schema == {}:
            return self.use("value")
        if not isinstance(schema, dict):
            raise refusal(
                path, "must be a JSON schema, which is an object" if schema is not False else "allows nothing"
            )
        for keyword in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._visit_keyword(keyword, schema, name, path, depth)
        kind = schema.get("type", _infer(schema))
        if isinstance(kind, list):
            if not kind:
                raise refusal(f"{path}.type", "must name a type")
            # Each type takes the keywords that are about it.
            about = {k: t for t in _BY_TYPE if t in kind for k in _BY_TYPE[t]}
            parts = []
            for each in dict.fromkeys(map(str, kind)):
                others = {k for k in about if k not in _BY_TYPE.get(each, set())}
                part = {k: v for k, v in schema.items() if k not in others} | {"type": each}
                parts.append(self._visit(part, name, path, depth + 1))
            return self.add(name, " | ".join(dict.fromkeys(parts)))
        if kind is None:
            self._check(schema, path, set())
            return self.use("value")
        if not isinstance(kind, str) or kind not in _BY_TYPE:
            raise refusal(f"{path}.type", f"must be one of {', '.join(_BY_TYPE)}, or a list of them")
        self._check(schema, path, {"type", *_BY_TYPE[kind], *_IGNORED.get(kind, ())})
        match kind:
            case "object":
                return self._object(schema, name, path, depth)
            case "array":
                return self._array(schema, name, path, depth)
            case "string":
                return self._string(schema, name, path)
            case "integer" | "number":
                return self._number(schema, kind, name, path)
            case _:
                return self.use(kind)

    def _check(self, schema: dict[str, Any], path: str, known: set[str]) -> None:
        for keyword in schema:
            if keyword not in known and keyword not in _ANNOTATIONS and not keyword.startswith("x-"):
                raise refusal(
                    f"{path}.{keyword}", "is a keyword of JSON Schema that cannot be enforced here; leave it out"
                )

    def _visit_keyword(self, keyword: str, schema: dict[str, Any], name: str, path: str, depth: int) -> str:
        value, at = schema[keyword], f"{path}.{keyword}"
        if keyword == "allOf":
            return self._visit(self._merge(schema, path), name, path, depth + 1)
        self._check(schema, path, {keyword, "type", "nullable"})
        if keyword == "$ref":
            return self._reference(value, at, depth)
        if keyword == "const":
            return self.add(name, literal(_dump(value)))
        if not isinstance(value, list) or not value:
            raise refusal(at, "must be a non-empty list")
        if keyword == "enum":
            return self.add(name, " | ".join(literal(_dump(v)) for v in value))
        parts = [self._visit(part, f"{name}-{i}", f"{at}[{i}]", depth + 1) for i, part in enumerate(value)]
        return self.add(name, " | ".join(dict.fromkeys(parts)))

    def _reference(self, reference: Any, path: str, depth: int) -> str:
        target = self._find(reference, path)
        known = self._references.get(reference)
        if known is None:
            known = self._references[reference] = self.reserve(reference.rsplit("/", 1)[-1])
            self.define(known, self._visit(target, f"{known}-target", path, depth + 1))
        return known

    def _find(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise refusal(path, "must point into the schema itself, as in #/$defs/NAME")
        target = self._root
        for step in reference.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict) and step in target:
                target = target[step]
            else:
                raise refusal(path, f"points to nothing: {reference}")
        return target

    def _merge(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        """Return one schema for all those of `allOf`: objects with their properties together, or a single one."""
        parts = schema["allOf"]
        if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) for p in parts):
            raise refusal(f"{path}.allOf", "must be a non-empty list of schemas")
        whole = {k: v for k, v in schema.items() if k != "allOf"}
        for index, part in enumerate(parts):
            at, hops = f"{path}.allOf[{index}]", 0
            while "$ref" in part and set(part) <= {"$ref", *_ANNOTATIONS} and hops <= DEPTH:
                part, hops = self._find(part["$ref"], f"{at}.$ref"), hops + 1
            for keyword, value in part.items():
                old = whole.get(keyword)
                if keyword in _ANNOTATIONS or old is None or old == value:
                    whole.setdefault(keyword, value)
                elif keyword == "properties" and isinstance(old, dict) and not set(old) & set(value):
                    whole[keyword] = old | value
                elif keyword == "required" and isinstance(old, list) and isinstance(value, list):
                    whole[keyword] = [*old, *(v for v in value if v not in old)]
                else:
                    raise refusal(f"{at}.{keyword}", "contradicts or narrows what another part of allOf says")
        return whole

    def _object(self, schema: dict[str, Any], name: str, path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise refusal(f"{path}.properties", "must be an object of schemas")
        if not isinstance(required, list) or not all(isinstance(r, str) for r in required):
            raise refusal(f"{path}.required", "must be a list of names")
        extra = schema.get("additionalProperties", True)
        undeclared = [r for r in required if r not in properties]
        if undeclared and extra is False:
            raise refusal(f"{path}.required", f"names '{undeclared[0]}', which properties lacks")
        wanted = {**properties, **dict.fromkeys(undeclared, extra)}
        ws = self.use("ws")
        if not wanted:
            if extra is False:
                return self.add(name, f'"{{" {ws} "}}"')
            if extra is True or extra == {}:
                return self.use("object")
            value = self._visit(extra, f"{name}-value", f"{path}.additionalProperties", depth + 1)
            pair = self.add(f"{name}-pair", f'{self.use("string")} {ws} ":" {ws} {value}')
            return self.add(name, f'"{{" {ws} ( {pair} ( {ws} "," {ws} {pair} )* {ws} )? "}}"')
        # From the last property backwards: what may follow when one has been written, and when none has.
        after, first = "", ""
        for key, part in reversed(wanted.items()):
            value = self._visit(part, f"{name}-{key}", f"{path}.properties.{key}", depth + 1)
            pair = f'{literal(_dump(key))} {ws} ":" {ws} {value}'
            begun = self.add(f"{name}-{key}-first", f"{pair} {after}".strip())
            if key in required:
                first = begun
                after = self.add(f"{name}-{key}-next", f'{ws} "," {ws} {pair} {after}'.strip())
            else:
                first = self.add(f"{name}-{key}-maybe", f"{begun} | {first}" if first else f"{begun}?")
                after = self.add(f"{name}-{key}-next", f'( {ws} "," {ws} {pair} )? {after}'.strip())
        return self.add(name, f'"{{" {ws} {first} {ws} "}}"')

    def _array(self, schema: dict[str, Any], name: str, path: str, depth: int) -> str:
        least, most = self._counts(schema, "minItems", "maxItems", path)
        ws, items = self.use("ws"), schema.get("items", True)
        comma = f'{ws} "," {ws}'
        prefix = items if isinstance(items, list) else schema.get("prefixItems")
        if prefix is not None:
            if not isinstance(prefix, list) or not prefix or least not in (0, len(prefix)):
                raise refusal(f"{path}.prefixItems", "must be a non-empty list of schemas, and minItems its length")
            parts = [self._visit(p, f"{name}-{i}", f"{path}.prefixItems[{i}]", depth + 1) for i, p in enumerate(prefix)]
            return self.add(name, f'"[" {ws} {f" {comma} ".join(parts)} {ws} "]"')
        if most == 0:
            return self.add(name, f'"[" {ws} "]"')
        item = self._visit(items, f"{name}-item", f"{path}.items", depth + 1)
        upper = "" if most is None else str(most - 1)
        more = f"( {comma} {item} ){{{max(least - 1, 0)},{upper}}}" if most != 1 else ""
        filled = f"{item} {more} {ws}"
        return self.add(name, f'"[" {ws} {filled} "]"' if least else f'"[" {ws} ( {filled} )? "]"')

    def _string(self, schema: dict[str, Any], name: str, path: str) -> str:
        pattern, kind = schema.get("pattern"), schema.get("format")
        sized = [k for k in ("minLength", "maxLength") if k in schema]
        if pattern is not None:
            if sized:
                raise refusal(f"{path}.{sized[0]}", "cannot be enforced beside pattern; say it in the pattern")
            try:
                body = translate(pattern, self)
            except UnsupportedPattern as error:
                raise refusal(f"{path}.pattern", str(error)) from None
            return self.add(name, f'"\\"" {body} "\\""')
        if kind in FORMATS:
            return self.add(name, f'"\\"" {self.use(kind)} "\\""')
        if not sized:
            return self.use("string")
        least, most = self._counts(schema, "minLength", "maxLength", path)
        if least > CHARACTERS:
            raise refusal(f"{path}.minLength", f"must be at most {CHARACTERS}")
        return self.add(name, self.text(least, CHARACTERS if most is None else min(most, CHARACTERS)))

    def _number(self, schema: dict[str, Any], kind: str, name: str, path: str) -> str:
        limits = {k: schema[k] for k in _BY_TYPE["number"] if k in schema}
        if not limits:
            return self.use(kind)
        for keyword, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
                raise refusal(f"{path}.{keyword}", "must be a number")
        if kind == "integer":
            lows = [-(-v // 1) for k, v in limits.items() if k == "minimum"]
            lows += [v // 1 + 1 for k, v in limits.items() if k == "exclusiveMinimum"]
            highs = [v // 1 for k, v in limits.items() if k == "maximum"]
            highs += [-(-v // 1) - 1 for k, v in limits.items() if k == "exclusiveMaximum"]
            low, high = (int(max(lows)) if lows else None), (int(min(highs)) if highs else None)
            if low is not None and high is not None and low > high:
                raise refusal(path, f"has no integer from {low} to {high}")
            return self.add(name, integer_range(low, high))
        if limits == {"minimum": 0}:
            return self.use("positive-number")
        keyword = next(iter(limits))
        raise refusal(f"{path}.{keyword}", 'of a "number" cannot be enforced, but "minimum": 0; leave it out')

    def _counts(self, schema: dict[str, Any], low: str, high: str, path: str) -> tuple[int, int | None]:
        for keyword in (low, high):
            value = schema.get(keyword, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise refusal(f"{path}.{keyword}", "must be a whole number from 0 up")
        least, most = schema.get(low, 0), schema.get(high)
        if most is not None and least > most:
            raise refusal(f"{path}.{low}", f"must be at most {high}")
        return least, most


def schema_grammar(schema: dict[str, Any], field: str) -> str:
    """Return the grammar of the JSON values that fit a schema. Raises RequestError naming `field` and the path."""
    rules = SchemaRules(field)
    return rules.render(LEAD + rules.schema("answer", schema))


def object_grammar() -> str:
    """Return the grammar of any JSON object."""
    rules = RuleSet()
    return rules.render(LEAD + rules.use("object"))


def _infer(schema: dict[str, Any]) -> str | None:
    """Return the type that a schema's keywords are about."""
    for kind in ("object", "array", "string", "number"):
        if _BY_TYPE[kind] & set(schema):
            return kind
    return None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def refusal(path: str, text: str) -> RequestError:
    """Return the error of a schema that cannot be kept."""
    return RequestError(Code.INVALID_VALUE, f"{path}: {text}", param=path)
