"""POST /v1/chat/completions: OpenAI's chat request to jobs, events to its chunks and its body."""

from typing import Annotated, Any

import orjson
from msgspec import Meta

from common.messages import Chat, StartedItem
from cortex.dialects import openai_fields, sse
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder
from cortex.dialects.openai_fields import Fields, TokenLimit
from cortex.dialects.openai_messages import read_messages
from cortex.dialects.tally import Collector, Tally
from cortex.fleet.contract import Events


class ChatFields(Fields, frozen=True, kw_only=True):
    """The request's body."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: TokenLimit | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    top_logprobs: int | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None


_decode = BodyDecoder(ChatFields)


class ChatRequest:
    """A chat request that has been read."""

    def __init__(self, fields: ChatFields) -> None:
        limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
        self._includes_usage = fields.includes_usage
        self.generation = Generation(
            model=fields.model,
            inputs=[Chat(messages=read_messages(fields.messages), template_kwargs=fields.chat_template_kwargs or {})],
            n=fields.n or 1,
            sampling=openai_fields.read_sampling(fields),
            max_tokens=openai_fields.read_limit(limit),
            is_stream=bool(fields.stream),
        )

    def stream(self, heading: Heading) -> "ChatStream":
        """Return the empty stream of the reply."""
        return ChatStream(heading, self.generation, includes_usage=self._includes_usage)

    def body(self, heading: Heading) -> "ChatBody":
        """Return the empty body of the reply."""
        return ChatBody(heading, self.generation)


class OpenAIChat:
    """Implements contract.Dialect."""

    name = "openai_chat"

    def read(self, body: bytes) -> ChatRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        fields = _decode(body)
        openai_fields.check(fields)
        _refuse_unsupported(fields)
        return ChatRequest(fields)


def _refuse_unsupported(fields: ChatFields) -> None:
    later = "leave it out; this version generates text only"
    form = fields.response_format
    is_text = form is None or (isinstance(form, dict) and form.get("type") == "text")
    openai_fields.refuse(
        ("tools", bool(fields.tools), later),
        ("tool_choice", fields.tool_choice not in (None, "none", "auto"), "use none or auto"),
        ("functions", bool(fields.functions), later),
        ("function_call", fields.function_call not in (None, "none", "auto"), "use none or auto"),
        ("response_format", not is_text, 'use {"type": "text"} or leave it out'),
        ("top_logprobs", bool(fields.top_logprobs), "leave it out"),
        ("modalities", fields.modalities not in (None, [], ["text"]), 'use ["text"] or leave it out'),
        ("audio", fields.audio is not None, later),
    )


class ChatStream:
    """Chunks: the role, content, finish_reason for each choice; then usage if asked for, and [DONE]."""

    def __init__(self, heading: Heading, generation: Generation, *, includes_usage: bool) -> None:
        self._tally = Tally(generation)
        self._includes_usage = includes_usage
        start = _head(heading, "chat.completion.chunk")[:-1] + b',"choices":['
        self._open = b"data: " + start
        self._heads = [self._open + b'{"index":%d,"delta":{"content":' % index for index in range(generation.size)]
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._close()

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well, and the stream's end has been returned."""
        return self._tally.is_complete

    def feed(self, events: Events) -> bytes:
        """Return what is to be sent for these events."""
        out: list[bytes] = []
        for index, event in events:
            if isinstance(event, str):
                out += (self._heads[index], orjson.dumps(event), self._tail)
            elif isinstance(event, StartedItem):
                self._tally.begin(index, event)
                out.append(self._chunk(index, b'{"role":"assistant","content":""}', b"null", self._close()))
            else:
                reason = orjson.dumps(self._tally.end(index, event))
                is_last = self._tally.is_complete
                close = self._close(timings=is_last and not self._includes_usage)
                out.append(self._chunk(index, b"{}", reason, close))
                if is_last:
                    out.append(self._end())
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the error as an event; no [DONE] follows it."""
        return sse.frame(envelope)

    def _chunk(self, index: int, delta: bytes, reason: bytes, close: bytes) -> bytes:
        return b'%s{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]%s' % (
            self._open, index, delta, reason, close,
        )  # fmt: skip

    def _close(self, *, timings: bool = False) -> bytes:
        usage = b',"usage":null' if self._includes_usage else b""
        if timings:
            usage += b',"timings":' + orjson.dumps(self._tally.timings())
        return usage + b"}\n\n"

    def _end(self) -> bytes:
        if not self._includes_usage:
            return sse.DONE
        usage, timings = orjson.dumps(self._tally.usage()), orjson.dumps(self._tally.timings())
        return b'%s],"usage":%s,"timings":%s}\n\n%s' % (self._open, usage, timings, sse.DONE)


class ChatBody(Collector):
    """The reply that is sent whole."""

    def __init__(self, heading: Heading, generation: Generation) -> None:
        super().__init__(generation)
        self._heading = heading

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts)},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (texts, reason) in enumerate(zip(self.texts, self.reasons, strict=True))
        ]
        tail = {"choices": choices, "usage": self.tally.usage(), "timings": self.tally.timings()}
        return _head(self._heading, "chat.completion")[:-1] + b"," + orjson.dumps(tail)[1:]


def _head(heading: Heading, kind: str) -> bytes:
    return orjson.dumps(
        {"id": f"chatcmpl-{heading.id}", "object": kind, "created": heading.created, "model": heading.model}
    )
