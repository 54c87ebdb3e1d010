"""POST /v1/embeddings: OpenAI's request to a job, its vectors to the body."""

import base64
import math
import struct
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from common.messages import Embed, EndedItem, Text, TokenIds
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value
from cortex.dialects.openai_fields import MAX_INT32, TokenId
from cortex.dialects.single import SingleBody, WholeRequest

MAX_INPUTS = 2048

Inputs = Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class EmbeddingFields(msgspec.Struct, frozen=True, kw_only=True):
    """The request's body. `user` is ignored."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None


_decode = BodyDecoder(EmbeddingFields)


class EmbeddingRequest(WholeRequest):
    """A request that has been read."""

    def __init__(self, fields: EmbeddingFields) -> None:
        self.generation = Generation(model=fields.model, inputs=[Embed(inputs=_read_input(fields.input))])
        self._is_base64 = fields.encoding_format == "base64"
        self._dimensions = fields.dimensions

    def body(self, heading: Heading) -> "EmbeddingBody":
        """Return the empty body of the reply."""
        return EmbeddingBody(heading, is_base64=self._is_base64, dimensions=self._dimensions)


class Embeddings:
    """Implements contract.Dialect."""

    name = "embeddings"

    def read(self, body: bytes) -> EmbeddingRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        return EmbeddingRequest(_decode(body))


def _read_input(given: str | list[str | int | list[int]]) -> list[Text | TokenIds]:
    if isinstance(given, str):
        return [Text(text=given)]
    if len(given) > MAX_INPUTS and not all(isinstance(g, int) for g in given):
        raise invalid_value("input", f"a list of at most {MAX_INPUTS} texts")
    texts = [g for g in given if isinstance(g, str)]
    ids = [g for g in given if isinstance(g, int)]
    lists = [g for g in given if isinstance(g, list)]
    if len(texts) == len(given):
        return [Text(text=text) for text in texts]
    if len(ids) == len(given):
        return [TokenIds(ids=ids)]
    if len(lists) == len(given):
        return [TokenIds(ids=item) for item in lists]
    raise invalid_value("input", "text, a list of texts, a list of token ids, or a list of lists of token ids")


class EmbeddingBody(SingleBody):
    """The reply: one vector an input, in order."""

    def __init__(self, heading: Heading, *, is_base64: bool, dimensions: int | None) -> None:
        super().__init__(heading)
        self._is_base64 = is_base64
        self._dimensions = dimensions

    def write(self, heading: Heading, item: EndedItem) -> bytes:
        """Return the JSON. Raises RequestError for more dimensions than the model's vectors have."""
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": self._encode(vector)}
            for index, vector in enumerate(item.vectors)
        ]
        usage = {"prompt_tokens": item.prompt_tokens, "total_tokens": item.prompt_tokens}
        return orjson.dumps({"object": "list", "data": data, "model": heading.model, "usage": usage})

    def _encode(self, vector: bytes) -> str | tuple[float, ...]:
        if self._dimensions is not None:
            vector = _shorten(vector, self._dimensions)
        if self._is_base64:
            return base64.b64encode(vector).decode()
        return struct.unpack(f"<{len(vector) // 4}f", vector)


def _shorten(vector: bytes, dimensions: int) -> bytes:
    """Return the beginning of a vector, of length 1 again. It means something where the model was trained for that."""
    size = len(vector) // 4
    if dimensions > size:
        raise invalid_value("dimensions", f"a whole number from 1 to {size}, which is what the model's vectors have")
    values = struct.unpack_from(f"<{dimensions}f", vector)
    length = math.hypot(*values) or 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in values))
