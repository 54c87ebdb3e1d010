"""POST /v1/completions: OpenAI's text completion request to jobs, events to its chunks and its body."""

from typing import Annotated, Any

import orjson
from msgspec import Meta

from common.messages import Chat, EndedItem, Infill, StartedItem, Text, TokenIds
from cortex.dialects import openai_fields, sse
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value
from cortex.dialects.openai_fields import Fields, TokenId
from cortex.dialects.openai_format import read_constraint
from cortex.dialects.openai_logprobs import completion_logprobs
from cortex.dialects.tally import Collector, Tally
from cortex.fleet.contract import Events, Told

DEFAULT_MAX_TOKENS = 16
"""As OpenAI documents it."""
MAX_CHOICES = 128
"""Prompts times n in one request."""

Prompt = Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class CompletionFields(Fields, frozen=True, kw_only=True):
    """The request's body."""

    prompt: str | Prompt
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


_decode = BodyDecoder(CompletionFields)


class CompletionRequest:
    """A completion request that has been read."""

    def __init__(self, fields: CompletionFields) -> None:
        inputs = _read_prompt(fields.prompt)
        if fields.suffix:
            inputs = [_read_gap(given, fields.suffix) for given in inputs]
        self._includes_usage = fields.includes_usage
        self._echoes: list[str] = [""] * len(inputs)
        if fields.echo:
            texts = [given.text for given in inputs if isinstance(given, Text)]
            if len(texts) < len(inputs):
                raise invalid_value("echo", "false or left out for a prompt of token ids, and beside a suffix")
            self._echoes = texts
        constraint, field = read_constraint(fields.response_format, fields.json_schema, fields.grammar)
        self.generation = Generation(
            model=fields.model,
            inputs=inputs,
            n=fields.n or 1,
            sampling=openai_fields.read_sampling(fields),
            constraint=constraint,
            constraint_field=field,
            logprobs=fields.logprobs,
            max_tokens=DEFAULT_MAX_TOKENS if fields.max_tokens is None else openai_fields.read_limit(fields.max_tokens),
            is_stream=bool(fields.stream),
        )
        if self.generation.size > MAX_CHOICES:
            raise invalid_value("prompt", f"so many that prompts times n are at most {MAX_CHOICES}")

    def stream(self, heading: Heading) -> "CompletionStream":
        """Return the empty stream of the reply."""
        return CompletionStream(heading, self.generation, self._choice_echoes(), includes_usage=self._includes_usage)

    def body(self, heading: Heading) -> "CompletionBody":
        """Return the empty body of the reply."""
        return CompletionBody(heading, self.generation, self._choice_echoes())

    def _choice_echoes(self) -> list[str]:
        return [echo for echo in self._echoes for _ in range(self.generation.n)]


class OpenAICompletions:
    """Implements contract.Dialect."""

    name = "openai_completions"

    def read(self, body: bytes) -> CompletionRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        fields = _decode(body)
        openai_fields.check(fields)
        openai_fields.refuse(
            ("best_of", (fields.best_of or 1) > 1, "use 1 or leave it out"),
        )
        return CompletionRequest(fields)


def _read_prompt(prompt: str | list[str | int | list[int]]) -> list[Chat | Text | TokenIds | Infill]:
    """Return an input for each prompt. Raises RequestError for a list of different things."""
    if isinstance(prompt, str):
        return [Text(text=prompt)]
    texts = [p for p in prompt if isinstance(p, str)]
    ids = [p for p in prompt if isinstance(p, int)]
    lists = [p for p in prompt if isinstance(p, list)]
    if len(texts) == len(prompt):
        return [Text(text=text) for text in texts]
    if len(ids) == len(prompt):
        return [TokenIds(ids=ids)]
    if len(lists) == len(prompt) and all(lists):
        return [TokenIds(ids=item) for item in lists]
    raise invalid_value("prompt", "text, a list of texts, a list of token ids, or a list of lists of token ids")


def _read_gap(given: Chat | Text | TokenIds | Infill, suffix: str) -> Infill:
    if not isinstance(given, Text):
        raise invalid_value("suffix", "left out beside a prompt of token ids")
    return Infill(prefix=given.text, suffix=suffix)


class CompletionStream:
    """Chunks: echo and text, finish_reason for each choice; then usage if asked for, and [DONE]."""

    reasoning_tokens = 0
    """All text is the answer's."""

    def __init__(self, heading: Heading, generation: Generation, echoes: list[str], *, includes_usage: bool) -> None:
        self._tally = Tally(generation)
        self._echoes = echoes
        self._includes_usage = includes_usage
        self._open = b"data: " + _head(heading)[:-1] + b',"choices":['
        self._heads = [self._open + b'{"index":%d,"text":' % index for index in range(generation.size)]
        self._offsets = [len(echo) for echo in echoes]
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._close()

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
            elif isinstance(event, Told):
                logprobs = completion_logprobs(event.logprobs, self._offsets[index])
                self._offsets[index] += sum(map(len, logprobs["tokens"]))
                chunk = (self._heads[index], orjson.dumps(event.text), b',"logprobs":', orjson.dumps(logprobs))
                out += (*chunk, b',"finish_reason":null}]', self._close())
            elif isinstance(event, StartedItem):
                self._tally.begin(index, event)
                # Also without an echo: the first chunk says that the request has begun.
                out += (self._heads[index], orjson.dumps(self._echoes[index]), self._tail)
            else:
                assert isinstance(event, EndedItem)
                out.append(self._finish(index, self._tally.end(index, event)))
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the error as an event; no [DONE] follows it."""
        return sse.frame(envelope)

    def ping(self) -> bytes:
        """Return what is sent in silence."""
        return sse.PING

    def _finish(self, index: int, reason: str) -> bytes:
        is_last = self._tally.is_complete
        chunk = b'%s"","logprobs":null,"finish_reason":%s}]%s' % (
            self._heads[index],
            orjson.dumps(reason),
            self._close(timings=is_last and not self._includes_usage),
        )
        if not is_last:
            return chunk
        if not self._includes_usage:
            return chunk + sse.DONE
        usage, timings = orjson.dumps(self._tally.usage()), orjson.dumps(self._tally.timings())
        return b'%s%s],"usage":%s,"timings":%s}\n\n%s' % (chunk, self._open, usage, timings, sse.DONE)

    def _close(self, *, timings: bool = False) -> bytes:
        usage = b',"usage":null' if self._includes_usage else b""
        if timings:
            usage += b',"timings":' + orjson.dumps(self._tally.timings())
        return usage + b"}\n\n"


class CompletionBody(Collector):
    """The reply that is sent whole."""

    def __init__(self, heading: Heading, generation: Generation, echoes: list[str]) -> None:
        super().__init__(generation)
        self._heading = heading
        self._echoes = echoes
        self._has_logprobs = generation.logprobs is not None

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "text": echo + "".join(texts),
                "logprobs": completion_logprobs(self.logprobs[index], len(echo)) if self._has_logprobs else None,
                "finish_reason": reason,
            }
            for index, (echo, texts, reason) in enumerate(zip(self._echoes, self.texts, self.reasons, strict=True))
        ]
        tail = {"choices": choices, "usage": self.tally.usage(), "timings": self.tally.timings()}
        return _head(self._heading)[:-1] + b"," + orjson.dumps(tail)[1:]


def _head(heading: Heading) -> bytes:
    return orjson.dumps(
        {
            "id": f"cmpl-{heading.id}",
            "object": "text_completion",
            "created": heading.created,
            "model": heading.model,
        }
    )
