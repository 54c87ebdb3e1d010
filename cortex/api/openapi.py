"""GET /openapi.json: the API as OpenAPI 3.1, made from the structs that check the requests."""

from http import HTTPStatus
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import msgspec
import orjson

from common import __version__
from common.errors import Code
from cortex.api.admin import VERBS
from cortex.api.errors import TABLE
from cortex.dashboard.page import MEDIA_TYPES
from cortex.dialects.anthropic_messages import CountFields, MessageFields
from cortex.dialects.embeddings import EmbeddingFields
from cortex.dialects.llama_infill import InfillFields
from cortex.dialects.llama_server import DetokenizeFields, TokenizeFields
from cortex.dialects.openai_chat import ChatFields
from cortex.dialects.openai_completions import CompletionFields
from cortex.dialects.openai_responses import PromptFields, ResponseFields
from cortex.dialects.rerank import RerankFields
from cortex.fleet.contract import Order

_REFS = "#/components/schemas/{name}"
_JSON, _EVENTS, _HTML = "application/json", "text/event-stream", MEDIA_TYPES["html"]
_ELSEWHERE = frozenset({Code.METHOD_NOT_ALLOWED, Code.NOT_FOUND})
"""Codes of paths and methods that are not in the document; fleet administration hides as NOT_FOUND."""


class _Post(NamedTuple):
    """An endpoint that takes a body."""

    path: str
    summary: str
    body: type[msgspec.Struct]
    streams: bool = False
    kind: str = _JSON
    is_admin: bool = False


class _Get(NamedTuple):
    """An endpoint that is only read."""

    path: str
    summary: str
    parameters: tuple[dict[str, Any], ...] = ()
    codes: tuple[Code, ...] = ()
    statuses: tuple[int, ...] = (200,)
    kinds: tuple[str, ...] = (_JSON,)


POSTS = (
    _Post("/v1/chat/completions", "OpenAI chat", ChatFields, streams=True),
    _Post("/v1/completions", "OpenAI text completion", CompletionFields, streams=True),
    _Post("/v1/responses", "OpenAI Responses; nothing is kept", ResponseFields, streams=True),
    _Post("/v1/responses/input_tokens", "How many tokens a Responses request has", PromptFields),
    _Post("/v1/embeddings", "OpenAI embeddings", EmbeddingFields),
    _Post("/v1/rerank", "Scores of documents for a query", RerankFields),
    _Post("/v1/messages", "Anthropic messages", MessageFields, streams=True),
    _Post("/v1/messages/count_tokens", "How many tokens an Anthropic request has", CountFields),
    _Post("/infill", "Text for a gap, as llama-server", InfillFields, streams=True),
    _Post("/tokenize", "The tokens of a text", TokenizeFields),
    _Post("/detokenize", "The text of tokens", DetokenizeFields),
    _Post("/apply-template", "The prompt of a chat request", ChatFields),
    *(_Post(f"/fleet/{verb}", f"An order to the neurons: {verb}", Order, kind="application/x-ndjson", is_admin=True)
      for verb in VERBS),
)  # fmt: skip
_MODEL_PATH = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_FILE_PATH = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_MODEL_QUERY = {"name": "model", "in": "query", "schema": {"type": "string"}}
_ANTHROPIC = {"name": "anthropic-version", "in": "header", "schema": {"type": "string"}}
_PROPS_CODES = tuple(code for code in Code if TABLE[code].status >= 500)
GETS = (
    _Get("/v1/models", "All models that could be served", (_ANTHROPIC,)),
    _Get("/v1/models/{model}", "One of them", (_MODEL_PATH, _ANTHROPIC), (Code.MODEL_NOT_FOUND,)),
    _Get("/props", "What llama-server says of itself or of a model", (_MODEL_QUERY,),
         (Code.MODEL_NOT_FOUND, *_PROPS_CODES)),
    _Get("/health", "ok, impaired or degraded, and why"),
    _Get("/livez", "Whether the gateway answers"),
    _Get("/readyz", "Whether new requests have a chance", statuses=(200, 503)),
    _Get("/version", "Versions of the program and of its bus"),
    _Get("/openapi.json", "This document"),
    _Get("/", "The page for a browser, a line of text for others", kinds=(_HTML, "text/plain; charset=utf-8")),
    _Get("/dashboard/{name}", "A file of the page", (_FILE_PATH,), (Code.NOT_FOUND,),
         kinds=tuple(MEDIA_TYPES.values())),
    _Get("/fleet/status", "Nodes, devices, models; with an admin key", (), (Code.NOT_FOUND,)),
    _Get("/fleet/live", "The same as it changes, as events; with an admin key", (), (Code.NOT_FOUND, Code.BUSY),
         kinds=(_EVENTS,)),
)  # fmt: skip
_COMMON_CODES = (Code.INVALID_VALUE, Code.INVALID_API_KEY, Code.PERMISSION_DENIED)
"""Also of requests without a body: a header or a query that cannot be read; a key that is missing or wrong."""


class OpenApi:
    """The document is made once."""

    def __init__(self) -> None:
        self._data = orjson.dumps(document())

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with the document."""
        resp.data = self._data


def document() -> dict[str, Any]:
    """Return the whole document."""
    bodies = list(dict.fromkeys(post.body for post in POSTS))
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REFS)
    paths: dict[str, Any] = {}
    for get in GETS:
        paths[get.path] = {"get": _read(get)}
    for post in POSTS:
        paths.setdefault(post.path, {})["post"] = _generate(post)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cortex",
            "version": __version__,
            "description": "One address in front of many GPU hosts. docs/api.md says what each field does.",
        },
        "paths": paths,
        "components": {"schemas": {**schemas, "OpenAIError": _openai_error(), "AnthropicError": _anthropic_error()}},
    }


def _read(get: _Get) -> dict[str, Any]:
    found = {str(status): _answer(status, get.kinds, {}) for status in get.statuses}
    errors = _errors((*_COMMON_CODES, *get.codes), "OpenAIError")
    return {"summary": get.summary, "parameters": list(get.parameters), "responses": {**errors, **found}}


def _generate(post: _Post) -> dict[str, Any]:
    good = _answer(200, (post.kind,), {"type": "object"} if post.kind == _JSON else {})
    if post.streams:
        good["content"][_EVENTS] = {}
    error = "AnthropicError" if post.path.startswith("/v1/messages") else "OpenAIError"
    codes = tuple(code for code in Code if code not in _ELSEWHERE or (post.is_admin and code is Code.NOT_FOUND))
    body = {
        "required": not post.is_admin,
        "content": {_JSON: {"schema": {"$ref": _REFS.format(name=post.body.__name__)}}},
    }
    return {
        "summary": post.summary,
        "requestBody": body,
        "responses": {"200": good, **_errors(codes, error)},
    }


def _errors(codes: tuple[Code, ...], name: str) -> dict[str, Any]:
    """Return a response for each status that these codes have, with the codes named."""
    known: dict[int, list[str]] = {}
    for code in codes:
        known.setdefault(TABLE[code].status, []).append(code.value)
    schema = {"$ref": _REFS.format(name=name)}
    return {
        str(status): {**_answer(status, (_JSON,), schema), "description": ", ".join(values)}
        for status, values in sorted(known.items())
    }


def _answer(status: int, kinds: tuple[str, ...], schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": {kind: {"schema": schema} for kind in kinds}}


def _openai_error() -> dict[str, Any]:
    text = {"type": "string"}
    fields = {"message": text, "type": text, "code": text, "param": {"type": ["string", "null"]}}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _anthropic_error() -> dict[str, Any]:
    text = {"type": "string"}
    error = {"type": "object", "properties": {"type": text, "message": text}, "required": ["type", "message"]}
    fields = {"type": {"const": "error"}, "error": error, "request_id": text}
    return {"type": "object", "properties": fields, "required": list(fields)}
