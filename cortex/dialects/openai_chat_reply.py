"""Events to the chunks and the body of OpenAI's chat."""

from typing import Any

import orjson

from common.formats.contract import Call, Content, Delta, Reasoning
from common.messages import EndedItem, StartedItem, TokenLogprob
from cortex.dialects import sse
from cortex.dialects.answer import Answer, Offer
from cortex.dialects.call_ids import call_id
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.openai_logprobs import chat_logprobs
from cortex.dialects.tally import Tally
from cortex.fleet.contract import Events, Told

REASONS = {"stop": "stop", "stop_sequence": "stop", "length": "length", "tool_calls": "tool_calls"}


class ChatStream:
    """Chunks: the role, reasoning, content, calls, finish_reason for each choice; usage if asked for; [DONE]."""

    def __init__(self, heading: Heading, generation: Generation, offer: Offer | None, *, includes_usage: bool) -> None:
        self._heading = heading
        self._tally = Tally(generation)
        self._answers = [Answer(offer) for _ in range(generation.size)]
        self._calls = [0] * generation.size
        self._includes_usage = includes_usage
        start = _head(heading, "chat.completion.chunk")[:-1] + b',"choices":['
        self._open = b"data: " + start
        self._heads = [self._open + b'{"index":%d,"delta":{"content":' % index for index in range(generation.size)]
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._close()

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well, and the stream's end has been returned."""
        return self._tally.is_complete

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""
        return sum(a.reasoning_tokens for a in self._answers)

    def feed(self, events: Events) -> bytes:
        """Return what is to be sent for these events."""
        out: list[bytes] = []
        for index, event in events:
            if isinstance(event, str):
                answer = self._answers[index]
                if answer.is_plain:
                    out += (self._heads[index], orjson.dumps(event), self._tail)
                else:
                    self._write(out, index, answer.push(event))
            elif isinstance(event, Told):
                self._tell(out, index, event)
            elif isinstance(event, StartedItem):
                self._tally.begin(index, event)
                self._answers[index].begin(event)
                out.append(self._chunk(index, b'{"role":"assistant","content":""}', b"null", self._close()))
            else:
                assert isinstance(event, EndedItem)
                self._end_one(out, index, event)
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the error as an event; no [DONE] follows it."""
        return sse.frame(envelope)

    def ping(self) -> bytes:
        """Return what is sent in silence."""
        return sse.PING

    def _tell(self, out: list[bytes], index: int, event: Told) -> None:
        """Write a piece; its tokens' log-probabilities go before it where it is yet to be read."""
        answer, delta, deltas = self._answers[index], b"{}", []
        if answer.is_plain:
            delta = orjson.dumps({"content": event.text})
        else:
            deltas = answer.push(event.text, len(event.logprobs))
        logprobs = orjson.dumps(chat_logprobs(event.logprobs))
        out.append(self._chunk(index, delta, b"null", self._close(), logprobs))
        self._write(out, index, deltas)

    def _write(self, out: list[bytes], index: int, deltas: list[Delta]) -> None:
        for delta in deltas:
            if isinstance(delta, Content):
                out += (self._heads[index], orjson.dumps(delta.text), self._tail)
            elif isinstance(delta, Reasoning):
                out.append(self._delta(index, {"reasoning_content": delta.text}))
            else:
                self._write_call(out, index, delta)

    def _write_call(self, out: list[bytes], index: int, call: Call) -> None:
        number = self._calls[index]
        self._calls[index] += 1
        head = {"name": call.name, "arguments": ""}
        begin = {"index": number, "id": call_id(self._heading, index, number), "type": "function", "function": head}
        out.append(self._delta(index, {"tool_calls": [begin]}))
        rest = {"index": number, "function": {"arguments": call.arguments}}
        out.append(self._delta(index, {"tool_calls": [rest]}))

    def _end_one(self, out: list[bytes], index: int, item: EndedItem) -> None:
        answer = self._answers[index]
        self._write(out, index, answer.finish())
        self._tally.end(index, item)
        is_last = self._tally.is_complete
        close = self._close(timings=is_last and not self._includes_usage)
        out.append(self._chunk(index, b"{}", orjson.dumps(REASONS[answer.reason(item)]), close))
        if is_last:
            out.append(self._end())

    def _delta(self, index: int, delta: dict[str, Any]) -> bytes:
        return self._chunk(index, orjson.dumps(delta), b"null", self._close())

    def _chunk(self, index: int, delta: bytes, reason: bytes, close: bytes, logprobs: bytes = b"null") -> bytes:
        return b'%s{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s}]%s' % (
            self._open, index, delta, logprobs, reason, close,
        )  # fmt: skip

    def _close(self, *, timings: bool = False) -> bytes:
        usage = b',"usage":null' if self._includes_usage else b""
        if timings:
            usage += b',"timings":' + orjson.dumps(self._tally.timings())
        return usage + b"}\n\n"

    def _end(self) -> bytes:
        if not self._includes_usage:
            return sse.DONE
        usage, timings = (
            orjson.dumps(self._tally.usage(self.reasoning_tokens)),
            orjson.dumps(self._tally.timings()),
        )
        return b'%s],"usage":%s,"timings":%s}\n\n%s' % (self._open, usage, timings, sse.DONE)


class ChatBody:
    """The reply that is sent whole."""

    def __init__(self, heading: Heading, generation: Generation, offer: Offer | None) -> None:
        self._heading = heading
        self._tally = Tally(generation)
        self._answers = [Answer(offer) for _ in range(generation.size)]
        self._deltas: list[list[Delta]] = [[] for _ in range(generation.size)]
        self._reasons = [""] * generation.size
        self._has_logprobs = generation.logprobs is not None
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(generation.size)]

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""
        return self._tally.is_complete

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""
        return sum(a.reasoning_tokens for a in self._answers)

    def feed(self, events: Events) -> None:
        """Take events."""
        for index, event in events:
            answer = self._answers[index]
            if isinstance(event, str):
                self._deltas[index] += answer.push(event)
            elif isinstance(event, Told):
                self._deltas[index] += answer.push(event.text, len(event.logprobs))
                self._logprobs[index] += event.logprobs
            elif isinstance(event, StartedItem):
                self._tally.begin(index, event)
                answer.begin(event)
            else:
                assert isinstance(event, EndedItem)
                self._deltas[index] += answer.finish()
                self._tally.end(index, event)
                self._reasons[index] = REASONS[answer.reason(event)]

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        choices = [
            {
                "index": index,
                "message": self._message(index, deltas),
                "logprobs": chat_logprobs(self._logprobs[index]) if self._has_logprobs else None,
                "finish_reason": self._reasons[index],
            }
            for index, deltas in enumerate(self._deltas)
        ]
        tail = {
            "choices": choices,
            "usage": self._tally.usage(self.reasoning_tokens),
            "timings": self._tally.timings(),
        }
        return _head(self._heading, "chat.completion")[:-1] + b"," + orjson.dumps(tail)[1:]

    def _message(self, index: int, deltas: list[Delta]) -> dict[str, Any]:
        content = "".join(d.text for d in deltas if isinstance(d, Content))
        reasoning = "".join(d.text for d in deltas if isinstance(d, Reasoning))
        calls = [d for d in deltas if isinstance(d, Call)]
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": call_id(self._heading, index, number),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(calls)
            ]
        return message


def _head(heading: Heading, kind: str) -> bytes:
    return orjson.dumps(
        {"id": f"chatcmpl-{heading.id}", "object": kind, "created": heading.created, "model": heading.model}
    )
