"""OpenAI's tools and tool_choice, checked. Templates get the tools as the client wrote them."""

from typing import Any, Literal, NamedTuple

from common.formats.contract import Tools
from cortex.dialects.answer import Offer
from cortex.dialects.decoding import invalid_value, missing_field, unsupported

NAME_CHARACTERS = 128
_CHOICES = 'none, auto, required, or {"type": "function", "function": {"name": "…"}}'


class Choice(NamedTuple):
    """What a request wants called."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None


class ToolSet(NamedTuple):
    """The tools of a request, after its choice."""

    tools: list[dict[str, Any]]
    """For the template; empty with the choice `none`."""
    offer: Offer | None
    choice: Literal["auto", "required"] = "auto"
    name: str | None = None


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Return OpenAI's list of tools. Raises RequestError naming the field."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise invalid_value("tools", "a list of tools")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_value(path, "an object")
        kind = tool.get("type")
        if kind is None:
            raise missing_field(f"{path}.type", "function")
        if kind != "function":
            raise unsupported(f"{path}.type", "only tools of type function can be called")
        if not isinstance(tool.get("function"), dict):
            raise missing_field(f"{path}.function", "an object")
        check_function(tool["function"], f"{path}.function", seen)
    return tools


def check_function(function: dict[str, Any], path: str, seen: set[str], *, schema: str = "parameters") -> None:
    """Check a function's name, description and schema. Raises RequestError naming the field."""
    name = function.get("name")
    if name is None:
        raise missing_field(f"{path}.name", "text")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable() or " " in name:
        raise invalid_value(f"{path}.name", f"text of 1 to {NAME_CHARACTERS} characters without spaces")
    if name in seen:
        raise invalid_value(f"{path}.name", "different from the names of the other tools")
    seen.add(name)
    if not isinstance(function.get("description"), str | None):
        raise invalid_value(f"{path}.description", "text")
    parameters = function.get(schema)
    if not isinstance(parameters, dict | None):
        raise invalid_value(f"{path}.{schema}", "a JSON schema, as an object")
    kind = "object" if parameters is None else parameters.get("type", "object")
    if kind != "object":
        raise invalid_value(f"{path}.{schema}.type", "object")
    properties = {} if parameters is None else parameters.get("properties", {})
    if not isinstance(properties, dict | None):
        raise invalid_value(f"{path}.{schema}.properties", "an object")


def read_choice(choice: Any, names: set[str], *, is_flat: bool = False) -> Choice:
    """Return the tool_choice. `is_flat`: a function's name stands beside its type, as in Responses."""
    if choice is None:
        return Choice("auto")
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        if choice == "required" and not names:
            raise invalid_value("tool_choice", "none or auto where there are no tools")
        return Choice(choice)  # type: ignore[arg-type]
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise invalid_value("tool_choice", _CHOICES)
    function = choice if is_flat else choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return named(name, names, "tool_choice.name" if is_flat else "tool_choice.function.name")


def named(name: Any, names: set[str], param: str) -> Choice:
    """Return the choice of one function. Raises RequestError where there is none of that name."""
    if not isinstance(name, str):
        raise missing_field(param, "the name of a function")
    if name not in names:
        raise invalid_value(param, "the name of one of the tools")
    return Choice("required", name)


def schemas(tools: list[dict[str, Any]]) -> Tools:
    """Map the names of functions to the schemas of their arguments."""
    return {t["function"]["name"]: t["function"].get("parameters") or {} for t in tools}


def combine(tools: list[dict[str, Any]], choice: Choice, *, is_parallel: bool) -> ToolSet:
    """Return what the job and the reply need to know of tools."""
    if not tools or choice.mode == "none":
        return ToolSet([], None)
    return ToolSet(tools, Offer(schemas(tools), is_parallel), choice.mode, choice.name)
