"""The prefix chain of a prompt: hashes of its growing beginnings, by which its next turn finds its KV again. Pure.

Only a hint: templates may reorder messages, and the worker compares tokens. The first hash stands for what many
conversations begin with (tools, system prompt), each further one for one message more.
"""

import hashlib
from array import array
from collections.abc import Iterable

import orjson

from common.messages import Chat, Infill, Text, TokenIds

LINKS = 32
"""Hashes sent of a longer chain: the last ones."""
PIECE_BYTES = 1024
"""Of a prompt without messages."""
_BASE_ROLES = frozenset({"system", "developer"})


def chain(prompt: object) -> list[str]:
    """Return the hashes of a prompt, the whole prompt's last; none for what is no prompt."""
    match prompt:
        case Chat():
            return _chain(_split(prompt))
        case Text():
            return _chain(_pieces(prompt.text.encode("utf-8", "surrogatepass")))
        case Infill():
            return _chain(_pieces(prompt.prefix.encode("utf-8", "surrogatepass")))
        case TokenIds():
            return _chain(_pieces(array("q", prompt.ids).tobytes()))
    return []


def _chain(pieces: Iterable[bytes]) -> list[str]:
    state = hashlib.blake2b(digest_size=8)
    links = []
    for piece in pieces:
        state.update(len(piece).to_bytes(8, "little"))
        state.update(piece)
        links.append(state.hexdigest())
    return links[-LINKS:]


def _split(chat: Chat) -> Iterable[bytes]:
    messages = chat.messages
    base = 0
    while base < len(messages) and messages[base].get("role") in _BASE_ROLES:
        base += 1
    yield _dump([chat.template_kwargs, messages[:base]])
    for message in messages[base:]:
        yield _dump(message)


def _dump(value: object) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer of more than 64 bits, or deep nesting: refused when the job is sent
        return b""


def _pieces(data: bytes) -> Iterable[bytes]:
    """Cut a prompt into whole pieces and a rest, so that a longer one begins with the same pieces."""
    yield b""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
