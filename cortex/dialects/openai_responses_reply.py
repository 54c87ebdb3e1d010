"""Events to the events and the body of OpenAI's Responses."""

from typing import Any

import orjson

from common.formats.contract import Call, Content, Delta
from common.messages import EndedItem, StartedItem, TokenLogprob
from cortex.dialects import sse
from cortex.dialects.answer import Answer, Offer
from cortex.dialects.call_ids import call_id
from cortex.dialects.contract import Heading
from cortex.dialects.openai_logprobs import output_logprobs
from cortex.fleet.contract import Events, Told


class ResponseStream:
    """created, in_progress, the events of each output item, and completed, incomplete or failed; all numbered.

    The `output` of the last event is put together from what the deltas said.
    """

    def __init__(self, heading: Heading, offer: Offer | None, told: dict[str, Any]) -> None:
        """`told`: what the response says about its request."""
        self._heading = heading
        self._answer = Answer(offer)
        self._told = orjson.dumps(told)[1:-1]
        self._number = 0
        self._has_begun = False
        self._output: list[dict[str, Any]] = []
        self._open: type[Delta] | None = None
        """Kind of the item that is open; it is the last of the output."""
        self._texts: list[str] = []
        """Of the open item."""
        self._logprobs: list[dict[str, Any]] = []
        """Of the open item."""
        self._unsaid: list[TokenLogprob] = []
        """Of tokens whose text is yet to be read."""
        self._head = b""
        """Of a delta of the open item, up to its text."""
        self._tail = b""
        self.final = b""
        """The response as the last event has it."""
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
                self._write(out, self._answer.push(event))
            elif isinstance(event, Told):
                self._unsaid += event.logprobs
                self._write(out, self._answer.push(event.text, len(event.logprobs)))
            elif isinstance(event, StartedItem):
                self._answer.begin(event)
                self._begin(out)
            else:
                assert isinstance(event, EndedItem)
                self._end(out, event)
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the failed response; nothing follows it."""
        out: list[bytes] = []
        if not self._has_begun:
            self._begin(out)
        self._close_item(out, "incomplete")
        error = orjson.loads(envelope)["error"]
        self._tell(out, "failed", error={"code": error["code"], "message": error["message"]})
        return b"".join(out)

    def ping(self) -> bytes:
        """Return what is sent in silence."""
        return sse.PING

    def _begin(self, out: list[bytes]) -> None:
        self._has_begun = True
        self._tell(out, "in_progress", kind="response.created")
        self._tell(out, "in_progress")

    def _end(self, out: list[bytes], item: EndedItem) -> None:
        self._write(out, self._answer.finish())
        is_cut = item.reason == "length"
        status = "incomplete" if is_cut else "completed"
        self._close_item(out, status)
        details = {"reason": "max_output_tokens"} if is_cut else None
        self._tell(out, status, details=details, usage=_usage(item, self.reasoning_tokens))
        self.is_complete = True

    def _tell(
        self,
        out: list[bytes],
        status: str,
        *,
        kind: str | None = None,
        error: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> None:
        """Write an event about the whole response."""
        response = {
            "id": f"resp_{self._heading.id}",
            "object": "response",
            "created_at": self._heading.created,
            "model": self._heading.model,
            "status": status,
            "error": error,
            "incomplete_details": details,
            "output": self._output,
            "usage": usage,
        }
        self.final = orjson.dumps(response)[:-1] + b"," + self._told + b"}"
        self._event(out, kind or f"response.{status}", response=orjson.Fragment(self.final))

    def _event(self, out: list[bytes], kind: str, **fields: Any) -> None:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        out += (b"event: ", kind.encode(), b"\ndata: ", data, b"\n\n")

    def _item_event(self, out: list[bytes], kind: str, **fields: Any) -> None:
        """Write an event about the last item."""
        index = len(self._output) - 1
        self._event(out, kind, item_id=self._output[index]["id"], output_index=index, **fields)

    def _write(self, out: list[bytes], deltas: list[Delta]) -> None:
        for delta in deltas:
            if isinstance(delta, Call):
                self._write_call(out, delta)
                continue
            kind = type(delta)
            if self._open is not kind:
                self._close_item(out)
                self._open_item(out, kind)
            self._texts.append(delta.text)
            logprobs = b"[]"
            if self._unsaid and kind is Content:
                said = output_logprobs(self._unsaid)
                self._logprobs += said
                logprobs = orjson.dumps(said)
            self._unsaid = []
            tail = self._tail % logprobs if kind is Content else self._tail
            out += (self._head % self._number, orjson.dumps(delta.text), tail)
            self._number += 1

    def _open_item(self, out: list[bytes], kind: type[Delta]) -> None:
        self._open = kind
        index = len(self._output)
        if kind is Content:
            name = f"msg_{self._heading.id}_{index}"
            item: dict[str, Any] = {"id": name, "type": "message", "role": "assistant", "content": []}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            delta, added, place = b"output_text", "response.content_part.added", "content_index"
            self._tail = b',"logprobs":%s}\n\n'
        else:
            name = f"rs_{self._heading.id}_{index}"
            item = {"id": name, "type": "reasoning", "summary": []}
            part = {"type": "summary_text", "text": ""}
            delta, added, place = b"reasoning_summary_text", "response.reasoning_summary_part.added", "summary_index"
            self._tail = b"}\n\n"
        self._output.append(item)
        self._event(out, "response.output_item.added", output_index=index, item={**item, "status": "in_progress"})
        self._item_event(out, added, **{place: 0}, part=part)
        self._head = (
            b"event: response.%s.delta\n"
            b'data: {"type":"response.%s.delta","item_id":"%s","output_index":%d,"%s":0,"sequence_number":%%d,"delta":'
            % (delta, delta, name.encode(), index, place.encode())
        )

    def _close_item(self, out: list[bytes], status: str = "completed") -> None:
        if self._open is None:
            return
        text, item = "".join(self._texts), self._output[-1]
        if self._open is Content:
            self._item_event(out, "response.output_text.done", content_index=0, text=text, logprobs=self._logprobs)
            part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}
            self._item_event(out, "response.content_part.done", content_index=0, part=part)
            item["content"] = [part]
        else:
            self._item_event(out, "response.reasoning_summary_text.done", summary_index=0, text=text)
            part = {"type": "summary_text", "text": text}
            self._item_event(out, "response.reasoning_summary_part.done", summary_index=0, part=part)
            item["summary"] = [part]
        item["status"] = status
        self._event(out, "response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open, self._texts, self._logprobs = None, [], []

    def _write_call(self, out: list[bytes], call: Call) -> None:
        self._close_item(out)
        self._unsaid = []
        index, number = len(self._output), sum(item["type"] == "function_call" for item in self._output)
        item: dict[str, Any] = {
            "id": f"fc_{self._heading.id}_{index}",
            "type": "function_call",
            "call_id": call_id(self._heading, 0, number),
            "name": call.name,
        }
        added = {**item, "arguments": "", "status": "in_progress"}
        self._event(out, "response.output_item.added", output_index=index, item=added)
        item |= {"arguments": call.arguments, "status": "completed"}
        self._output.append(item)
        self._item_event(out, "response.function_call_arguments.delta", delta=call.arguments)
        self._item_event(out, "response.function_call_arguments.done", name=call.name, arguments=call.arguments)
        self._event(out, "response.output_item.done", output_index=index, item=item)


class ResponseBody:
    """The reply that is sent whole: the response of the stream's last event."""

    def __init__(self, heading: Heading, offer: Offer | None, told: dict[str, Any]) -> None:
        self._stream = ResponseStream(heading, offer, told)

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended well."""
        return self._stream.is_complete

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its thoughts so far, a part of the answer's."""
        return self._stream.reasoning_tokens

    def feed(self, events: Events) -> None:
        """Take events."""
        self._stream.feed(events)

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        return self._stream.final


def _usage(item: EndedItem, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": item.prompt_tokens,
        "input_tokens_details": {"cached_tokens": item.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": item.total,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": item.prompt_tokens + item.total,
    }
