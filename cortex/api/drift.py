"""Notices conversations whose beginning changes from turn to turn, so that no turn can use the KV of the one before.

Clients do this without knowing, with a checksum or a date near the start of the system prompt. It is said in the log
once a conversation, with the place of the change; what was written there is not.
"""

import logging
from collections import OrderedDict
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


class _Turn(NamedTuple):
    messages: int
    head: bytes
    """The first SHARE of the prompt's content, in the order in which templates show it."""
    places: list[tuple[int, str]]
    """Where the parts of the head begin, and what they are."""


class DriftWatch:
    """Remembers the start of the last turn of each conversation, which is known by its first message of the user."""

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
        name = orjson.dumps([principal, model, first.get("content")])
        key = blake2b(name, digest_size=16).digest()
        before = self._turns.get(key)
        if before is None and key in self._turns:
            return
        turn, size = _read(chat)
        if size < LEAST_CHARACTERS:
            return
        self._turns[key] = turn
        self._turns.move_to_end(key)
        if len(self._turns) > CONVERSATIONS:
            self._turns.popitem(last=False)
        if before is None or turn.messages <= before.messages or turn.head.startswith(before.head):
            return
        self._turns[key] = None
        log.warning(
            "the prompts of a conversation begin differently in each turn (%s): none of the prefix cache can be used",
            _explain(before, turn),
            extra=fields(request_id=request_id, principal=principal, model=model),
        )


def _read(chat: Chat) -> tuple[_Turn, int]:
    """Return what is remembered of a turn, and the size of its prompt."""
    parts = [(f"messages[{index}], {m.get('role')}", m) for index, m in enumerate(chat.messages)]
    # Templates show tools with or after the system message, before everything else.
    tools_at = 1 if parts and chat.messages[0].get("role") == "system" else 0
    if chat.tools:
        parts.insert(tools_at, ("tools", {"tools": chat.tools}))
    texts = [(place, orjson.dumps(part.get("content") or part)) for place, part in parts]
    size = sum(len(text) for _, text in texts)
    limit = int(size * SHARE)
    head, places = b"", []
    for place, text in texts:
        if len(head) >= limit:
            break
        places.append((len(head), place))
        head += text[: limit - len(head)]
    return _Turn(len(chat.messages), head, places), size


def _explain(before: _Turn, turn: _Turn) -> str:
    """Say where two turns part."""
    ends = (i for i, (a, b) in enumerate(zip(before.head, turn.head, strict=False)) if a != b)
    end = next(ends, min(len(before.head), len(turn.head)))
    start, place = max((p for p in turn.places if p[0] <= end), default=(0, "the beginning"))
    return f"{place}, about character {end - start}"
