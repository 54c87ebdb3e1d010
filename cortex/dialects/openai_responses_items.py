"""The input items of OpenAI's Responses as the messages that chat templates know.

What one turn of the model made (reasoning, a message, calls) comes as items of their own, and is one message to a
template. Items that tell of tools which run on the vendor's servers cannot be shown to a template; they are refused.
"""

from typing import Any

from cortex.dialects.decoding import invalid_value, missing_field, unsupported
from cortex.dialects.images import refuse_image

Message = dict[str, Any]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text")
_CONTENT = "text or a list of parts"


def read_input(given: str | list[Any], instructions: str | None) -> list[Message]:
    """Return the messages for the template. Raises RequestError naming the field."""
    out: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*out, {"role": "user", "content": given}]
    if not given:
        raise invalid_value("input", "text or a non-empty list of items")
    turn = _Turn(out)
    for index, item in enumerate(given):
        _read_item(turn, item, f"input[{index}]")
    turn.close()
    return out


class _Turn:
    """Gathers what belongs to one message of the assistant."""

    def __init__(self, out: list[Message]) -> None:
        self._out = out
        self._open: Message | None = None

    def add(self, message: Message) -> None:
        """Add somebody else's message."""
        self.close()
        self._out.append(message)

    def think(self, text: str) -> None:
        """Add thoughts, which come before everything else of a message."""
        message = self._assistant(without=("content", "tool_calls"))
        message["reasoning_content"] = (
            f"{message['reasoning_content']}\n{text}" if "reasoning_content" in message else text
        )

    def say(self, content: Any) -> None:
        """Add an answer."""
        self._assistant(without=("content", "tool_calls"))["content"] = content

    def call(self, call: dict[str, Any]) -> None:
        """Add a call."""
        self._assistant(without=()).setdefault("tool_calls", []).append(call)

    def close(self) -> None:
        """End the message that is open."""
        if self._open is not None:
            self._open.setdefault("content", "")
            self._out.append(self._open)
            self._open = None

    def _assistant(self, *, without: tuple[str, ...]) -> Message:
        if self._open is not None and any(name in self._open for name in without):
            self.close()
        if self._open is None:
            self._open = {"role": "assistant"}
        return self._open


def _read_item(turn: _Turn, item: Any, path: str) -> None:
    if not isinstance(item, dict):
        raise invalid_value(path, 'an object such as {"role": "user", "content": "…"}')
    kind = item.get("type", "message")
    match kind:
        case "message":
            _read_message(turn, item, path)
        case "function_call":
            turn.call(_read_call(item, path))
        case "function_call_output":
            turn.add(_read_output(item, path))
        case "reasoning":
            text = _read_thoughts(item, path)
            if text:
                turn.think(text)
        case str():
            raise unsupported(f"{path}.type", f"items of type '{kind}' cannot be read; leave it out")
        case _:
            raise invalid_value(f"{path}.type", "message, function_call, function_call_output or reasoning")


def _read_message(turn: _Turn, item: dict[str, Any], path: str) -> None:
    allowed = f"one of {', '.join(_ROLES)}"
    role = item.get("role")
    if role is None:
        raise missing_field(f"{path}.role", allowed)
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid_value(f"{path}.role", allowed)
    content = _read_content(item.get("content"), f"{path}.content")
    if role == "assistant":
        turn.say(content)
    else:
        turn.add({"role": _ROLES[role], "content": content})


def _read_content(content: Any, path: str) -> Any:
    """Return one text as it is, several as parts: nothing is put between them."""
    if content is None:
        raise missing_field(path, _CONTENT)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_value(path, _CONTENT)
    texts = [_read_part(part, f"{path}[{index}]") for index, part in enumerate(content)]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _read_part(part: Any, path: str) -> str:
    if not isinstance(part, dict):
        raise invalid_value(path, 'an object such as {"type": "input_text", "text": "…"}')
    kind = part.get("type")
    if not isinstance(kind, str):
        raise missing_field(f"{path}.type", "input_text")
    if kind == "input_image":
        if part.get("image_url") is None and part.get("file_id") is not None:
            raise unsupported(f"{path}.file_id", "send the image as a data URI in image_url")
        raise refuse_image(part.get("image_url"), f"{path}.image_url")
    if kind == "refusal":
        return _text(part, "refusal", path)
    if kind not in _TEXTS:
        raise unsupported(f"{path}.type", f"parts of type '{kind}' cannot be read; send input_text")
    return _text(part, "text", path)


def _read_call(item: dict[str, Any], path: str) -> dict[str, Any]:
    function = {"name": _text(item, "name", path), "arguments": _text(item, "arguments", path)}
    return {"id": _text(item, "call_id", path), "type": "function", "function": function}


def _read_output(item: dict[str, Any], path: str) -> Message:
    output = _read_content(item.get("output"), f"{path}.output")
    return {"role": "tool", "tool_call_id": _text(item, "call_id", path), "content": output}


def _read_thoughts(item: dict[str, Any], path: str) -> str:
    """Return the thoughts themselves, or else their summary; what is encrypted is for its author's servers."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if not parts:
            continue
        if not isinstance(parts, list):
            raise invalid_value(f"{path}.{name}", "a list of parts")
        texts = []
        for index, part in enumerate(parts):
            if not isinstance(part, dict):
                raise invalid_value(f"{path}.{name}[{index}]", "an object with type and text")
            texts.append(_text(part, "text", f"{path}.{name}[{index}]"))
        return "\n".join(texts)
    return ""


def _text(item: dict[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if value is None:
        raise missing_field(f"{path}.{name}", "text")
    if not isinstance(value, str):
        raise invalid_value(f"{path}.{name}", "text")
    return value
