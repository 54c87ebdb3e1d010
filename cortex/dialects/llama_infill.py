"""llama-server's POST /infill: what stands around a gap to a job, events to llama-server's own chunks and body."""

from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from common.messages import EndedItem, Infill, Snippet, StartedItem
from cortex.dialects import openai_fields, sse
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder
from cortex.dialects.openai_fields import ModelName, SamplingFields
from cortex.dialects.openai_format import read_constraint
from cortex.dialects.tally import Tally
from cortex.fleet.contract import Events, Told

_STOPS = {"stop": "eos", "stop_sequence": "word", "length": "limit"}


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of another file."""

    text: str
    filename: str = ""


class InfillFields(SamplingFields, frozen=True, kw_only=True):
    """The request's body. `cache_prompt`, `samplers`, `n_indent`, `t_max_predict_ms` and the like are ignored."""

    model: ModelName
    input_prefix: str
    input_suffix: str
    input_extra: list[Extra] | None = None
    prompt: str | None = None
    n_predict: Annotated[int, Meta(ge=-1)] | None = None
    stream: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


_decode = BodyDecoder(InfillFields)


class InfillRequest:
    """A request that has been read."""

    def __init__(self, fields: InfillFields) -> None:
        given = Infill(
            prefix=fields.input_prefix,
            suffix=fields.input_suffix,
            prompt=fields.prompt or "",
            extra=[Snippet(text=extra.text, filename=extra.filename) for extra in fields.input_extra or ()],
            field="input_suffix",
        )
        limit = fields.n_predict
        constraint, field = read_constraint(None, fields.json_schema, fields.grammar)
        self.generation = Generation(
            model=fields.model,
            inputs=[given],
            sampling=openai_fields.read_sampling(fields),
            constraint=constraint,
            constraint_field=field,
            max_tokens=None if limit is None or limit < 1 else openai_fields.read_limit(limit),
            is_stream=bool(fields.stream),
        )

    def stream(self, heading: Heading) -> "InfillStream":
        """Return the empty stream of the reply."""
        return InfillStream(heading, self.generation)

    def body(self, heading: Heading) -> "InfillBody":
        """Return the empty body of the reply."""
        return InfillBody(heading, self.generation)


class LlamaInfill:
    """Implements contract.Dialect."""

    name = "llama_infill"

    def read(self, body: bytes) -> InfillRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        return InfillRequest(_decode(body))


class InfillStream:
    """Chunks of content; the last one has `stop` and what was counted. There is no [DONE]."""

    reasoning_tokens = 0
    """All text is the answer's."""

    def __init__(self, heading: Heading, generation: Generation) -> None:
        self._heading = heading
        self._tally = Tally(generation)
        self._texts: list[str] = []
        self._prompt_tokens = 0
        self.whole = b""
        """The reply that is sent whole, once complete."""

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended well, and the stream's end has been returned."""
        return self._tally.is_complete

    def feed(self, events: Events) -> bytes:
        """Return what is to be sent for these events."""
        out: list[bytes] = []
        for _, event in events:
            if isinstance(event, str | Told):
                text = event if isinstance(event, str) else event.text
                self._texts.append(text)
                chunk = {"index": 0, "content": str(text), "tokens": [], "stop": False, "id_slot": -1}
                out.append(sse.frame(orjson.dumps({**chunk, "tokens_evaluated": self._prompt_tokens})))
            elif isinstance(event, StartedItem):
                self._tally.begin(0, event)
                self._prompt_tokens = event.prompt_tokens
            else:
                assert isinstance(event, EndedItem)
                self._tally.end(0, event)
                end = self._end(event)
                self.whole = orjson.dumps({**end, "content": "".join(self._texts)})
                out.append(sse.frame(orjson.dumps(end)))
        return b"".join(out)

    def fail(self, envelope: bytes) -> bytes:
        """Return the error as an event, the last one."""
        return sse.frame(envelope)

    def ping(self) -> bytes:
        """Return what is sent in silence."""
        return sse.PING

    def _end(self, item: EndedItem) -> dict[str, Any]:
        return {
            "index": 0,
            "content": "",
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._heading.model,
            "tokens_predicted": item.total,
            "tokens_evaluated": item.prompt_tokens,
            "generation_settings": {},
            "has_new_line": any("\n" in text for text in self._texts),
            "truncated": False,
            "stop_type": _STOPS[item.reason],
            "stopping_word": item.stop_sequence or "",
            "tokens_cached": item.cached_tokens,
            "timings": self._tally.timings(),
        }


class InfillBody:
    """The reply that is sent whole."""

    reasoning_tokens = 0
    """All text is the answer's."""

    def __init__(self, heading: Heading, generation: Generation) -> None:
        self._stream = InfillStream(heading, generation)

    @property
    def is_complete(self) -> bool:
        """Whether the job has ended well."""
        return self._stream.is_complete

    def feed(self, events: Events) -> None:
        """Take events."""
        self._stream.feed(events)

    def render(self) -> bytes:
        """Return the JSON, once complete."""
        return self._stream.whole
