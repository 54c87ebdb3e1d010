"""How large a request may be in other ways than bytes. Pure."""

from typing import Any

import msgspec

from common.errors import Code, RequestError
from common.messages import Chat, Grammar, JsonSchema
from cortex.dialects.canonical import Generation

_encode = msgspec.json.Encoder().encode


class Bounds(msgspec.Struct, frozen=True):
    """What a request may hold."""

    messages: int
    tools: int
    nesting: int
    """Levels of objects and lists in messages, tools and schemas."""
    stop: int
    """Strings that end the answer."""
    schema_bytes: int
    """As JSON, of all tools together, and of the schema of an answer."""
    grammar_bytes: int


def check(generation: Generation, bounds: Bounds) -> None:
    """Raise RequestError for what is beyond the bounds."""
    _count(len(generation.sampling.stop), bounds.stop, "stop")
    for given in generation.inputs:
        check_input(given, bounds)
    constraint, field = generation.constraint, generation.constraint_field
    if isinstance(constraint, JsonSchema):
        _depth(constraint.schema, bounds.nesting, field)
        _size(len(_encode(constraint.schema)), bounds.schema_bytes, field)
    elif isinstance(constraint, Grammar):
        _size(len(constraint.gbnf.encode()), bounds.grammar_bytes, field)


def check_input(given: object, bounds: Bounds) -> None:
    """Raise RequestError for a conversation that is beyond the bounds; other prompts have none but the body's."""
    if not isinstance(given, Chat):
        return
    _count(len(given.messages), bounds.messages, "messages")
    _count(len(given.tools), bounds.tools, "tools")
    _depth(given.messages, bounds.nesting, "messages")
    _depth(given.tools, bounds.nesting, "tools")
    _depth(given.template_kwargs, bounds.nesting, "chat_template_kwargs")
    if given.tools:
        _size(len(_encode(given.tools)), bounds.schema_bytes, "tools")


def is_deeper(value: Any, levels: int) -> bool:
    """Say whether objects and lists are nested in more levels than that."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        # All of a level at once: a loop over single values would take three times as long.
        level = [c for v in level for c in (v.values() if type(v) is dict else v) if type(c) is dict or type(c) is list]
        if not level:
            return False
    return bool(level)


def _count(found: int, most: int, param: str) -> None:
    if found > most:
        raise RequestError(Code.INVALID_VALUE, f"{param}: has {found} entries; at most {most} are allowed", param=param)


def _size(found: int, most: int, param: str) -> None:
    if found > most:
        text = f"{param}: has {found} bytes; at most {most} are allowed"
        raise RequestError(Code.INVALID_VALUE, text, param=param)


def _depth(value: Any, most: int, param: str) -> None:
    if is_deeper(value, most):
        text = f"{param}: is nested too deeply; at most {most} levels are allowed"
        raise RequestError(Code.INVALID_VALUE, text, param=param)
