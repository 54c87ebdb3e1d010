"""Schemas of functions' arguments, of every kind that calls are held to."""

from typing import Any

TEXT = {"type": "string", "maxLength": 40}


def thing(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


SCHEMAS: list[dict[str, Any]] = [
    thing(),
    thing(city=TEXT),
    thing(city=TEXT, days={"type": "integer", "minimum": 1, "maximum": 14}),
    thing(unit={"enum": ["C", "F"]}),
    thing(flag={"type": "boolean"}, nothing={"type": "null"}),
    thing(x={"type": "number", "minimum": 0}),
    thing(tags={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3}),
    thing(place=thing(lat={"type": "number"}, lon={"type": "number"})),
    thing(a=thing(b=thing(c=thing(d={"type": "integer"})))),
    thing(["name"], name=TEXT, age={"type": "integer", "minimum": 0}, note=TEXT),
    thing([], a=TEXT, b=TEXT),
    thing(code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"}),
    thing(day={"type": "string", "format": "date"}),
    thing(grüße={"type": "string", "maxLength": 20}, 名前={"enum": ["東京", "🙂", 'say "hi"']}),
    thing(rows={"type": "array", "items": thing(k=TEXT, v={"type": "integer"}), "maxItems": 3}),
    thing(value={"anyOf": [{"type": "integer"}, {"enum": ["none", "all"]}]}),
    thing(mode={"const": "fast"}),
    thing(maybe={"type": ["string", "null"], "maxLength": 20}),
    thing(pair={"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
    thing(ref={"$ref": "#/$defs/node"}) | {"$defs": {"node": thing(id={"type": "integer"}, label=TEXT)}},
]
"""The twenty that the demo model is made to fill."""

OPTION = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
ODD_SCHEMAS: list[dict[str, Any]] = [
    thing(a={"type": "string"}, b={"type": "string", "minLength": 3}),
    thing(a=OPTION, b={"anyOf": [{"type": "string"}, {"type": "integer"}]}),
    thing(a={"type": ["string", "integer", "null"], "maxLength": 9}),
    thing(a={"enum": ["x", 1, None, "1", "true"]}),
    thing(a={"const": "<b>"}, b={"const": 5}, c={"enum": ["null", "12"]}),
    thing(a={"type": "string", "pattern": "^.{2,5}$"}, b={"type": "string", "pattern": "^[^a]*<?[0-Z]$"}),
    thing(a={"type": "string", "maxLength": 200}, b={"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}),
    thing(a={"type": "string", "format": "uuid"}, b={"type": ["string", "null"], "format": "date"}),
    thing(kind={"$ref": "#/$defs/kind"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
    | {"$defs": {"kind": {"enum": ["red", "12"]}, "node": thing(k={"$ref": "#/$defs/kind"})}},
    thing(a={"allOf": [{"$ref": "#/$defs/size"}], "description": "how large"})
    | {"$defs": {"size": {"type": "string", "enum": ["s", "m"]}}},
    {
        "type": "object",
        "required": ["class", "ﬁn"],
        "properties": {"my-key": {"type": "integer"}, "class": {"type": "string"}, "ﬁn": {"type": "boolean"}},
    },
    thing([], a={"type": "array", "items": {"type": ["string", "null"]}}, b={"type": "object"}, c={}),
    thing(value={"type": "number"}, big={"type": "integer"}, any={}),
]
"""What schemas of real clients have besides, and what would read as something else between tags."""
