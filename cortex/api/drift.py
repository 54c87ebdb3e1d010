"""Notices conversations whose beginning changes from turn to turn, so that no turn can use the KV of the one before.

Clients do this without knowing, with a checksum or a date near the start of the system prompt. It is said in the log
once a conversation, with the place of the change; what was written there is not.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import orjson

from common.log import fields
from common.messages import Chat

log = logging.getLogger(__name__)

SHARE = 0.05
"""A later turn that shares less than this part of the turn before, counted from the start, is told of."""
CONVERSATIONS = 512
"""Remembered at once, those that were heard of last."""
LEAST_CHARACTERS = 2000
"""Of a prompt: below, there is nothing worth keeping."""
KEY_BYTES = 4096
"""Of the user's first message, by which a conversation is known, beside its length."""

Part = tuple[str, object]
"""Of a prompt: where it stands, and what it says."""


class _Turn(NamedTuple):
    messages: int
    measured_at: int
    """Messages that the turn had whose size `head` is a share of."""
    head: bytes
    """The first SHARE of the prompt's content, in the order in which templates show it."""
    places: list[tuple[int, str]]
    """Where the parts of the head begin, and what they are."""


class DriftWatch:
    """Remembers the start of the last turn of each conversation, which is known by its first message of the user.

    Only the start of a turn is read, but for the first one and those of twice as many messages, which are measured: so
    what a long conversation costs grows with its turns, not with their square.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, _Turn | None] = OrderedDict()
        """None: it was told of."""

    def look(self, chat: Chat, *, principal: str, model: str, request_id: str) -> None:
        """Compare a turn with the one before it of the same conversation, and log what keeps them apart."""
        try:
            self._look(chat, principal, model, request_id)
        except TypeError:  # an integer of more than 64 bits, or deep nesting: refused when the job is sent
            return

    def _look(self, chat: Chat, principal: str, model: str, request_id: str) -> None:
        first = next((m for m in chat.messages if m.get("role") == "user"), None)
        if first is None:
            return
        said = orjson.dumps(first.get("content"))
        name = orjson.dumps([principal, model, len(said)]) + said[:KEY_BYTES]
        key = blake2b(name, digest_size=16).digest()
        before = self._turns.get(key)
        if before is None and key in self._turns:
            return
        messages = len(chat.messages)
        if before is None or messages >= 2 * before.measured_at:
            turn = _measure(chat)
        else:
            head, places = _read(chat, len(before.head))
            turn = _Turn(messages, before.measured_at, head, places)
        if turn is None:
            return
        self._turns[key] = turn
        self._turns.move_to_end(key)
        if len(self._turns) > CONVERSATIONS:
            self._turns.popitem(last=False)
        if before is None or messages <= before.messages:
            return
        if turn.head.startswith(before.head[: len(turn.head)]):
            return
        self._turns[key] = None
        log.warning(
            "the prompts of a conversation begin differently in each turn (%s): none of the prefix cache can be used",
            _explain(before, turn),
            extra=fields(request_id=request_id, principal=principal, model=model),
        )


def _parts(chat: Chat) -> Iterator[Part]:
    """Return what a prompt is made of. Templates show tools with or after the system message, before all else."""
    tools_at = 1 if chat.messages and chat.messages[0].get("role") == "system" else 0
    for index, message in enumerate(chat.messages):
        if index == tools_at:
            yield from _tools(chat)
        yield f"messages[{index}], {message.get('role')}", message.get("content") or message
    if tools_at == len(chat.messages):
        yield from _tools(chat)


def _tools(chat: Chat) -> Iterator[Part]:
    return ((f"tools[{index}]", tool) for index, tool in enumerate(chat.tools))


def _measure(chat: Chat) -> _Turn | None:
    """Return what is remembered of a turn after a look at the whole of it; None of one that is too short."""
    size = sum(len(orjson.dumps(part)) for _, part in _parts(chat))
    if size < LEAST_CHARACTERS:
        return None
    return _Turn(len(chat.messages), len(chat.messages), *_read(chat, int(size * SHARE)))


def _read(chat: Chat, limit: int) -> tuple[bytes, list[tuple[int, str]]]:
    """Return so many bytes of a prompt's beginning, and where the parts of it begin."""
    head, places = b"", []
    for place, part in _parts(chat):
        room = limit - len(head)
        if room <= 0:
            break
        places.append((len(head), place))
        head += orjson.dumps(part[:room] if isinstance(part, str) else part)[:room]
    return head, places


def _explain(before: _Turn, turn: _Turn) -> str:
    """Say where two turns part."""
    ends = (i for i, (a, b) in enumerate(zip(before.head, turn.head, strict=False)) if a != b)
    end = next(ends, min(len(before.head), len(turn.head)))
    start, place = max((p for p in turn.places if p[0] <= end), default=(0, "the beginning"))
    return f"{place}, about character {end - start}"
