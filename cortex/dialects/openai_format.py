"""What an answer is held to: response_format, and llama-server's grammar and json_schema."""

from typing import Any

from common.messages import Grammar, JsonObject, JsonSchema
from cortex.dialects.decoding import invalid_value, missing_field

Constraint = Grammar | JsonSchema | JsonObject


def read_constraint(
    form: dict[str, Any] | None, schema: dict[str, Any] | None, grammar: str | None
) -> tuple[Constraint | None, str]:
    """Return what response_format, json_schema or grammar ask for, and the field it came from.

    Raises RequestError naming the field.
    """
    given: list[tuple[Constraint, str]] = []
    read = None if form is None else _read_format(form)
    if read is not None:
        given.append(read)
    if schema is not None:
        given.append((JsonSchema(schema=schema), "json_schema"))
    if grammar:
        given.append((Grammar(gbnf=grammar), "grammar"))
    if len(given) > 1:
        name = given[1][1]
        raise invalid_value(name, f"left out beside {given[0][1].split('.')[0]}: an answer is held to one of them")
    return given[0] if given else (None, "response_format")


def _read_format(form: dict[str, Any]) -> tuple[Constraint, str] | None:
    allowed = "text, json_object or json_schema"
    match form.get("type"):
        case None:
            raise missing_field("response_format.type", allowed)
        case "text":
            return None
        case "json_object":
            # llama-server takes a schema beside it.
            schema = form.get("schema")
            if schema is None:
                return JsonObject(), "response_format"
            return JsonSchema(schema=check_schema(schema, "response_format.schema")), "response_format.schema"
        case "json_schema":
            return _read_json_schema(form.get("json_schema"))
        case _:
            raise invalid_value("response_format.type", allowed)


def _read_json_schema(named: object) -> tuple[Constraint, str]:
    path = "response_format.json_schema"
    if named is None:
        raise missing_field(path, "an object with name and schema")
    if not isinstance(named, dict):
        raise invalid_value(path, "an object with name and schema")
    if "schema" not in named:
        raise missing_field(f"{path}.schema", "a JSON schema, as an object")
    return JsonSchema(schema=check_schema(named["schema"], f"{path}.schema")), f"{path}.schema"


def check_schema(schema: object, path: str) -> dict[str, Any]:
    """Return the schema that stands at `path`. Raises RequestError for what is none."""
    if not isinstance(schema, dict):
        raise invalid_value(path, "a JSON schema, as an object")
    return schema
