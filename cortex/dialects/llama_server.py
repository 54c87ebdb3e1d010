"""llama-server's POST /tokenize, /detokenize and /apply-template; `model` is required, as there may be many."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from common.messages import RenderedItem, Text, TokenIds
from cortex.dialects.decoding import BodyDecoder
from cortex.dialects.openai_chat import ChatFields, read_chat
from cortex.dialects.openai_fields import TokenId
from cortex.dialects.question import Question

Model = Annotated[str, Meta(min_length=1, max_length=256)]


class TokenizeFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /tokenize."""

    model: Model
    content: str
    add_special: bool = False
    parse_special: bool = True


class DetokenizeFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /detokenize."""

    model: Model
    tokens: list[TokenId]


_decode_tokenize = BodyDecoder(TokenizeFields)
_decode_detokenize = BodyDecoder(DetokenizeFields)
_decode_chat = BodyDecoder(ChatFields)


class Tokenize:
    """Implements question.Asking."""

    name = "tokenize"

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""
        fields = _decode_tokenize(body)
        text = Text(text=fields.content, add_special=fields.add_special, parse_special=fields.parse_special)
        return Question(fields.model, text)

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
        return {"tokens": item.tokens}


class Detokenize:
    """Implements question.Asking."""

    name = "detokenize"

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""
        fields = _decode_detokenize(body)
        return Question(fields.model, TokenIds(ids=fields.tokens))

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
        return {"content": item.text}


class ApplyTemplate:
    """Implements question.Asking: the prompt that a chat request becomes, tools included."""

    name = "apply_template"

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""
        fields = _decode_chat(body)
        return Question(fields.model, read_chat(fields)[0])

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
        return {"prompt": item.text}
