"""Checks chat messages. They go on as the client wrote them; only `developer` is spelled `system` for templates."""

from typing import Any

from common.errors import RequestError
from cortex.dialects.decoding import invalid_value, missing_field
from cortex.dialects.images import refuse_image

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
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{path}.tool_calls")
    if "content" not in message and not (role == "assistant" and calls):
        raise missing_field(f"{path}.content", "text, null or a list of parts")
    _check_content(message.get("content"), f"{path}.content")
    if not isinstance(message.get("reasoning_content"), str | None):
        raise invalid_value(f"{path}.reasoning_content", "text or null")
    return message if ROLES[role] == role else {**message, "role": ROLES[role]}


def _check_calls(calls: Any, path: str) -> None:
    if not isinstance(calls, list):
        raise invalid_value(path, "a list of calls")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise missing_field(f"{path}[{index}].function", "an object")
        if not isinstance(function.get("name"), str):
            raise missing_field(f"{path}[{index}].function.name", "text")
        if not isinstance(function.get("arguments"), str | dict | None):
            raise invalid_value(f"{path}[{index}].function.arguments", "text with a JSON object")


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
    if kind == "image_url":
        image = part.get("image_url")
        return refuse_image(image.get("url") if isinstance(image, dict) else image, f"{path}.image_url")
    if kind != "text":
        return invalid_value(f"{path}.type", "text or image_url")
    if not isinstance(part.get("text"), str):
        return missing_field(f"{path}.text", "text")
    return None
