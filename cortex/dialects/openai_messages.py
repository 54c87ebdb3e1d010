"""Checks chat messages. They go on as the client wrote them; only `developer` is spelled `system` for templates."""

from typing import Any

from common.errors import RequestError
from cortex.dialects.decoding import invalid_value, missing_field, unsupported

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def read_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages for the template. Raises RequestError naming the field."""
    return [_read(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _read(message: dict[str, Any], path: str) -> dict[str, Any]:
    allowed = f"one of {', '.join(ROLES)}"
    role = message.get("role")
    if role is None:
        raise missing_field(f"{path}.role", allowed)
    if not isinstance(role, str) or role not in ROLES:
        raise invalid_value(f"{path}.role", allowed)
    if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
        raise missing_field(f"{path}.content", "text, null or a list of parts")
    _check_content(message.get("content"), f"{path}.content")
    return message if ROLES[role] == role else {**message, "role": ROLES[role]}


def _check_content(content: object, path: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid_value(path, "text, null or a list of parts")
    for index, part in enumerate(content):
        error = _judge_part(part, f"{path}[{index}]")
        if error is not None:
            raise error


def _judge_part(part: object, path: str) -> RequestError | None:
    if not isinstance(part, dict):
        return invalid_value(path, 'an object such as {"type": "text", "text": "…"}')
    kind = part.get("type")
    if not isinstance(kind, str):
        return missing_field(f"{path}.type", "text")
    if kind != "text":
        return unsupported(f"{path}.type", f"'{kind}' parts cannot be read by this version; send parts of type text")
    if not isinstance(part.get("text"), str):
        return missing_field(f"{path}.text", "text")
    return None
