"""Anthropic's system, messages and content blocks as the messages that chat templates know."""

import json
import re
from typing import Any

from cortex.dialects.decoding import invalid_value, missing_field, unsupported
from cortex.dialects.images import refuse_base64

Message = dict[str, Any]

_ROLES = "one of user, assistant, system"
_STAMP = re.compile(r"(?<=\bcch=)[0-9A-Za-z]{5}(?![0-9A-Za-z])")
_STAMPED = "x-anthropic-billing-header:"
_CONSTANT = "00000"


def read_system(system: Any, *, normalizes_stamp: bool) -> list[Message]:
    """Return the system message, if there is one. Raises RequestError naming the field."""
    if system is None or system == [] or system == "":
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": _settle(system, normalizes_stamp)}]
    parts = _texts(system, "system", "text or a list of blocks of type text")
    return [{"role": "system", "content": [{"type": "text", "text": _settle(p, normalizes_stamp)} for p in parts]}]


def _settle(text: str, normalizes_stamp: bool) -> str:
    """Make the one checksum constant that would else change the beginning of every prompt of a session."""
    if not normalizes_stamp or not text.startswith(_STAMPED):
        return text
    return _STAMP.sub(_CONSTANT, text, count=1)


def read_messages(messages: list[dict[str, Any]]) -> list[Message]:
    """Return the messages for the template. Raises RequestError naming the field."""
    out: list[Message] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        role = message.get("role")
        if role is None:
            raise missing_field(f"{path}.role", _ROLES)
        content = message.get("content")
        if content is None:
            raise missing_field(f"{path}.content", "text or a list of blocks")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise invalid_value(f"{path}.content", "text or a list of blocks")
        if role == "user":
            out += _read_user(content, f"{path}.content")
        elif role == "assistant":
            out.append(_read_assistant(content, f"{path}.content"))
        elif role == "system":
            out.append({"role": "system", "content": _text_parts(_texts(content, f"{path}.content", "text"))})
        else:
            raise invalid_value(f"{path}.role", _ROLES)
    return out


def _text_parts(texts: list[str]) -> Any:
    """Return one text as it is, several as parts: nothing is put between them."""
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _texts(blocks: Any, path: str, allowed: str) -> list[str]:
    if not isinstance(blocks, list):
        raise invalid_value(path, allowed)
    return [_text(block, f"{path}[{index}]") for index, block in enumerate(blocks)]


def _text(block: Any, path: str) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        raise invalid_value(f"{path}.type", "text")
    text = block.get("text")
    if not isinstance(text, str):
        raise missing_field(f"{path}.text", "text")
    return text


def _read_user(blocks: list[Any], path: str) -> list[Message]:
    """Return results of tools as messages of their own, and what stands between them as the user's."""
    out: list[Message] = []
    texts: list[str] = []

    def close() -> None:
        if texts:
            out.append({"role": "user", "content": _text_parts(list(texts))})
            texts.clear()

    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        match _kind(block, where):
            case "text":
                texts.append(_text(block, where))
            case "tool_result":
                close()
                out.append(_read_result(block, where))
            case "image":
                raise _refuse_image(block, where)
            case kind:
                raise unsupported(f"{where}.type", f"blocks of type '{kind}' cannot be read; send text")
    close()
    return out or [{"role": "user", "content": ""}]


def _read_result(block: dict[str, Any], path: str) -> Message:
    call = block.get("tool_use_id")
    if not isinstance(call, str):
        raise missing_field(f"{path}.tool_use_id", "the id of a tool_use block")
    content = block.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list):
        for index, part in enumerate(content):
            if isinstance(part, dict) and part.get("type") == "image":
                raise _refuse_image(part, f"{path}.content[{index}]")
        content = _text_parts(_texts(content, f"{path}.content", "text or a list of blocks"))
    elif not isinstance(content, str):
        raise invalid_value(f"{path}.content", "text or a list of blocks")
    result = {"role": "tool", "tool_call_id": call, "content": content}
    return {**result, "is_error": True} if block.get("is_error") is True else result


def _read_assistant(blocks: list[Any], path: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        match _kind(block, where):
            case "text":
                texts.append(_text(block, where))
            case "thinking":
                if not isinstance(block.get("thinking"), str):
                    raise missing_field(f"{where}.thinking", "text")
                thoughts.append(block["thinking"])
            case "redacted_thinking":
                pass  # encrypted for its author's servers
            case "tool_use":
                calls.append(_read_call(block, where))
            case kind:
                raise unsupported(f"{where}.type", f"blocks of type '{kind}' cannot be read; send text")
    message: Message = {"role": "assistant", "content": _text_parts(texts) if texts else ""}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _read_call(block: dict[str, Any], path: str) -> dict[str, Any]:
    for name in ("id", "name"):
        if not isinstance(block.get(name), str):
            raise missing_field(f"{path}.{name}", "text")
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise invalid_value(f"{path}.input", "an object")
    function = {"name": block["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": block["id"], "type": "function", "function": function}


def _kind(block: Any, path: str) -> str:
    if not isinstance(block, dict):
        raise invalid_value(path, 'an object such as {"type": "text", "text": "…"}')
    kind = block.get("type")
    if not isinstance(kind, str):
        raise missing_field(f"{path}.type", "text")
    return kind


def _refuse_image(block: dict[str, Any], path: str) -> Exception:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return invalid_value(f"{path}.source", "an object of type base64; addresses are not fetched")
    media = source.get("media_type")
    kind = media.removeprefix("image/") if isinstance(media, str) else media
    return refuse_base64(kind, source.get("data"), f"{path}.source")
