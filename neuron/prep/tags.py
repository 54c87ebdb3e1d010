"""Values between tags as GBNF: texts as they are, everything else as JSON. Pure."""

from typing import Any

from common.formats.contract import Schema
from common.formats.gbnf import either, literal, until
from common.formats.values import kinds, options
from neuron.prep.pattern import UnsupportedPattern, translate
from neuron.prep.rules import CHARACTERS, FORMATS
from neuron.prep.schema import SchemaRules, refusal

_FREE = 64
"""Characters from which on a bounded text may hold `<`: what is counted then are steps of one or two characters."""
_STARTS = {"integer": "0-9-", "number": "0-9-", "array": "\\[", "object": "{"}
"""How JSON of each type begins; a text that begins so would be read as that."""


class TagRules(SchemaRules):
    """A grammar in the making that also takes schemas of values between tags."""

    def bare(self, name: str, schema: Any, marker: str, *, root: Schema | None = None) -> str:
        """Add a rule for the values that fit a schema, as they stand before `marker`, and return its name.

        Of a schema that `schema` takes, since what that refuses is not looked for again. Raises RequestError.
        """
        base = schema if root is None else root
        allowed = kinds(schema, base)
        if allowed and "string" not in allowed:
            return self.schema(name, schema, root=root)
        bodies, others = [], allowed - {"string"}
        for option in options(schema, base):
            text, rest = _split(option)
            if text is not None:
                bodies.append(self._text(name, text, marker, others))
            if rest is not None and allowed:
                bodies.append(self.schema(name, rest, root=root))
        return self.add(f"{name}-text", either(dict.fromkeys(bodies)))

    def _text(self, name: str, schema: dict[str, Any], marker: str, others: set[str]) -> str:
        """Return a body for the texts that fit a schema and do not look like JSON of the other types."""
        listed = [v for v in _listed(schema) if isinstance(v, str)]
        if listed:
            return either(literal(v) for v in listed)
        pattern, form = schema.get("pattern"), schema.get("format")
        if pattern is not None:
            try:
                return translate(pattern, self, is_bare=True)
            except UnsupportedPattern as error:
                raise refusal(f"{self.field}.{name}.pattern", str(error)) from None
        if form in FORMATS:
            return self.use(form)
        guard = "".join(_STARTS[k] for k in sorted(others) if k in _STARTS)
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not least and most is None:
            first = f'[^<"\\x00-\\x20{guard}] ' if guard else ""
            return first + until(marker)
        most = CHARACTERS if most is None else min(most, CHARACTERS)
        if guard:
            return f'[^<"\\x00-\\x20{guard}] {self._steps(max(least - 1, 0), most - 1)}' if most else '""'
        return self._steps(least, most)

    def _steps(self, least: int, most: int) -> str:
        """Return a body for texts of `least` to `most` characters that do not hold the beginning of a tag."""
        if most >= _FREE and most // 2 >= least:
            return self.repeat(self.use("bare-step"), least, most // 2)
        return self.repeat(self.use("bare-char"), least, most)


def _split(schema: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the part of a schema that is about texts, and the part that is about all other values."""
    if "const" in schema or "enum" in schema:
        others = [v for v in _listed(schema) if not isinstance(v, str)]
        has_text = len(others) < len(_listed(schema))
        return (schema if has_text else None), ({"enum": others} if others else None)
    kind = schema.get("type")
    if isinstance(kind, list):
        rest = [k for k in kind if k != "string"]
        about = {k: v for k, v in schema.items() if k not in ("minLength", "maxLength", "pattern", "format")}
        return (schema if "string" in kind else None), ({**about, "type": rest} if rest else None)
    if kind == "string" or (kind is None and not kinds(schema, schema)):
        return schema, None
    return None, schema


def _listed(schema: dict[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))
