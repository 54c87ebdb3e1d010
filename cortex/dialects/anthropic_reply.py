"""Events to the events and the body of Anthropic's messages."""

from typing import Any

import orjson

from common.formats.contract import Call, Content, Delta, Reasoning
from common.messages import EndedItem, StartedItem
from cortex.dialects import sse
from cortex.dialects.answer import Answer, Offer
from cortex.dialects.call_ids import call_id
from cortex.dialects.contract import Heading
from cortex.fleet.contract import Events

_REASONS = {"stop": "end_turn", "stop_sequence": "stop_sequence", "length": "max_tokens", "tool_calls": "tool_use"}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


class MessageStream:
    """message_start, ping, blocks with rising indexes, message_delta, message_stop."""

    def __init__(self, heading: Heading, offer: Offer | None) -> None:
        self._heading = heading
        self._answer = Answer(offer)
        self._index = -1
        self._open: type[Delta] | None = None
        """Kind of the block that is open."""
        self._calls = 0
        self._head = b""
        """Of a delta of the open block, up to its text."""
        self._has_begun = False
        self.is_complete = False
        """Whether the job has ended well, and the stream's end has been returned."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""
        return self._answer.reasoning_tokens

    def feed(self, events: Events) -> bytes:
        """Return what is to be sent for these events."""
        out: list[bytes] = []
        for _, event in events:
            if isinstance(event, str):
                if self._answer.is_plain:
                    self._write_text(out, Content, event)
                else:
                    self._write(out, self._answer.push(event))
            elif isinstance(event, StartedItem):
                self._answer.begin(event)
                self._has_begun = True
                message = _message(self._heading, [], None, None, _usage(event.prompt_tokens, event.cached_tokens, 0))
                out += (_event("message_start", message=message), _PING)
            else:
                assert isinstance(event, EndedItem)
                self._end(out, event)
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the error as an event; nothing follows it."""
        return b"event: error\ndata: " + envelope + b"\n\n"

    def ping(self) -> bytes:
        """Return what is sent in silence; before message_start only a comment is known to harm nobody."""
        return _PING if self._has_begun else sse.PING

    def _write(self, out: list[bytes], deltas: list[Delta]) -> None:
        for delta in deltas:
            if isinstance(delta, Call):
                self._write_call(out, delta)
            else:
                self._write_text(out, type(delta), delta.text)

    def _write_text(self, out: list[bytes], kind: type[Delta], text: str) -> None:
        if self._open is not kind:
            self._close_block(out)
            self._open_block(out, kind)
        out += (self._head, orjson.dumps(text), b"}}\n\n")

    def _open_block(self, out: list[bytes], kind: type[Delta]) -> None:
        self._index += 1
        self._open = kind
        is_text = kind is Content
        block = {"type": "text", "text": ""} if is_text else {"type": "thinking", "thinking": "", "signature": ""}
        out.append(_event("content_block_start", index=self._index, content_block=block))
        names = (b"text_delta", b"text") if is_text else (b"thinking_delta", b"thinking")
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
            % (self._index, *names)
        )

    def _close_block(self, out: list[bytes]) -> None:
        if self._open is None:
            return
        if self._open is Reasoning:
            delta = {"type": "signature_delta", "signature": _signature(self._heading)}
            out.append(_event("content_block_delta", index=self._index, delta=delta))
        out.append(_event("content_block_stop", index=self._index))
        self._open = None

    def _write_call(self, out: list[bytes], call: Call) -> None:
        self._close_block(out)
        self._index += 1
        block = {**_call_block(self._heading, self._calls, call.name), "input": {}}
        self._calls += 1
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        out += (
            _event("content_block_start", index=self._index, content_block=block),
            _event("content_block_delta", index=self._index, delta=delta),
            _event("content_block_stop", index=self._index),
        )

    def _end(self, out: list[bytes], item: EndedItem) -> None:
        self._write(out, self._answer.finish())
        self._close_block(out)
        reason = _REASONS[self._answer.reason(item)]
        delta = {"stop_reason": reason, "stop_sequence": _stop_sequence(reason, item)}
        usage = _usage(item.prompt_tokens, item.cached_tokens, item.total)
        out += (_event("message_delta", delta=delta, usage=usage), _event("message_stop"))
        self.is_complete = True


class MessageBody:
    """The reply that is sent whole."""

    def __init__(self, heading: Heading, offer: Offer | None) -> None:
        self._heading = heading
        self._answer = Answer(offer)
        self._deltas: list[Delta] = []
        self._ended: EndedItem | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended well."""
        return self._ended is not None

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""
        return self._answer.reasoning_tokens

    def feed(self, events: Events) -> None:
        """Take events."""
        for _, event in events:
            if isinstance(event, str):
                self._deltas += self._answer.push(event)
            elif isinstance(event, StartedItem):
                self._answer.begin(event)
            else:
                assert isinstance(event, EndedItem)
                self._deltas += self._answer.finish()
                self._ended = event

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        item = self._ended
        assert item is not None
        reason = _REASONS[self._answer.reason(item)]
        usage = _usage(item.prompt_tokens, item.cached_tokens, item.total)
        stop = _stop_sequence(reason, item)
        return orjson.dumps(_message(self._heading, self._blocks(), reason, stop, usage))

    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        calls = 0
        for delta in self._deltas:
            last = blocks[-1] if blocks else {}
            match delta:
                case Content(text=text):
                    if last.get("type") == "text":
                        last["text"] += text
                    else:
                        blocks.append({"type": "text", "text": text})
                case Reasoning(text=text):
                    if last.get("type") == "thinking":
                        last["thinking"] += text
                    else:
                        blocks.append({"type": "thinking", "thinking": text, "signature": _signature(self._heading)})
                case Call():
                    block = _call_block(self._heading, calls, delta.name)
                    blocks.append({**block, "input": orjson.Fragment(delta.arguments)})
                    calls += 1
        return blocks


def _message(
    heading: Heading, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: dict[str, int]
) -> dict[str, Any]:
    return {
        "id": f"msg_{heading.id}",
        "type": "message",
        "role": "assistant",
        "model": heading.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": usage,
    }


def _usage(prompt: int, cached: int, output: int) -> dict[str, int]:
    """Return Anthropic's usage, whose input_tokens are those that were not read from the cache."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }


def _stop_sequence(reason: str, item: EndedItem) -> str | None:
    return item.stop_sequence if reason == "stop_sequence" else None


def _call_block(heading: Heading, number: int, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id(heading, 0, number), "name": name}


def _signature(heading: Heading) -> str:
    """Return what clients send back with the block; nothing here checks it."""
    return heading.id
