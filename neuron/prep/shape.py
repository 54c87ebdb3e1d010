"""Whether a conversation that came over the bus is what dialects make: its gateway may be a newer program. Pure."""

from types import NoneType
from typing import Any

import msgspec

from common.errors import Code, RequestError
from common.messages import Chat


class _Call(msgspec.Struct):
    id: str | None = None
    function: dict[str, Any] | None = None


class _Message(msgspec.Struct):
    role: str
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _Function


_PLAIN = (str, int, float, bool, NoneType)


def check_shape(chat: Chat) -> None:
    """Raise RequestError for messages, tools or arguments of another shape than the rest of prep reads."""
    for value, kind, field in ((chat.messages, list[_Message], "messages"), (chat.tools, list[_Tool], "tools")):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise RequestError(Code.INVALID_VALUE, f"{field}: {error}", param=field) from None
    if not _is_json([chat.messages, chat.tools, chat.template_kwargs]):
        raise RequestError(Code.INVALID_VALUE, "messages: hold what is no JSON", param="messages")


def _is_json(value: Any) -> bool:
    """Say whether a value that was decoded from msgpack could have been JSON: no bytes, texts for keys."""
    level = [value]
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                if not all(isinstance(key, str) for key in each):
                    return False
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif not isinstance(each, _PLAIN):
                return False
        level = below
    return True
