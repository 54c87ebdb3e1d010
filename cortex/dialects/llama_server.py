"""llama-server's POST /tokenize, /detokenize, /apply-template (`model` is required: there may be many), GET /props."""

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


def router_props(version: str) -> dict[str, Any]:
    """Return what llama-server's router says of itself."""
    return {
        "role": "router",
        "build_info": f"cortex {version}",
        "model_alias": "cortex",
        "model_path": "none",
        "default_generation_settings": {"params": {}},
    }


def model_props(entry: dict[str, Any], item: RenderedItem, version: str) -> dict[str, Any]:
    """Return what llama-server says of a model: its entry in the list, and what its file tells."""
    meta = entry.get("meta", {})
    settings = {"params": {}, **({"n_ctx": meta["n_ctx"]} if "n_ctx" in meta else {})}
    props = {
        "model_alias": entry["id"],
        "model_path": entry["id"],
        "build_info": f"cortex {version}",
        "default_generation_settings": settings,
        "modalities": {"vision": "vision" in entry.get("capabilities", ()), "audio": False},
        "chat_template": item.template,
        "bos_token": item.bos,
        "eos_token": item.eos,
        "is_sleeping": entry.get("status", {}).get("value") != "loaded",
    }
    return {**props, "total_slots": meta["n_slots"]} if "n_slots" in meta else props
