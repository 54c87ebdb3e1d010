"""What is fed with mutations. A target raises only for a finding: what it may raise by its contract is caught here."""

import asyncio
import json
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson
from msgspec import structs

from common.catalogue import Profile
from common.codec import decode_from_neuron, decode_to_neuron, encode
from common.errors import ProtocolError, RequestError
from common.formats import reasoning
from common.formats.contract import Call
from common.formats.family import SYNTAXES, Family
from common.messages import (
    PROTOCOL_VERSION,
    Abort,
    Beat,
    CancelJobs,
    Chat,
    Claim,
    ClearCache,
    Discover,
    Effective,
    Health,
    Hello,
    Job,
    JobKey,
    JsonSchema,
    Load,
    Memory,
    Models,
    Pin,
    ReadEvents,
    ReadLog,
    Status,
    Submit,
    Text,
    TokenItem,
    Tokens,
    Unload,
    Unpin,
    Version,
)
from cortex.acp import upstream
from cortex.dialects.anthropic_count import AnthropicCount
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.bounds import Bounds, check, check_input
from cortex.dialects.contract import Dialect
from cortex.dialects.embeddings import Embeddings
from cortex.dialects.llama_infill import LlamaInfill
from cortex.dialects.llama_server import ApplyTemplate, Detokenize, Tokenize
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.dialects.openai_responses import OpenAIInputTokens, OpenAIResponses
from cortex.dialects.question import Asking
from cortex.dialects.rerank import Reranking
from neuron.models.header import DamagedHeader, read_header

TOOLS = {"weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}
CALLS = [Call("weather", '{"city": "Zürich", "days": 3}'), Call("weather", "{}")]


class Target(NamedTuple):
    """Something that reads what others wrote."""

    examples: list[bytes]
    run: Callable[[bytes], None]


FRAMES_MODEL = "m"
"""That the frames are about."""


def frames() -> list[bytes]:
    """Return frames as gateways and admins send them; none that takes a device out of service by itself."""
    job = Job(
        id="0" * 32,
        attempt=0,
        model=FRAMES_MODEL,
        request_id="r",
        input=Chat(
            messages=[{"role": "user", "content": "hé"}],
            tools=[{"type": "function", "function": {"name": "weather", "parameters": TOOLS["weather"]}}],
        ),
        constraint=JsonSchema(schema=TOOLS["weather"]),
        resume_tokens=[1, 2, 3],
    )
    text = Job(id="1" * 32, attempt=0, model=FRAMES_MODEL, request_id="r", input=Text(text="hello"), max_tokens=4)
    stranger = Profile(id="stranger", source="file:/nowhere/stranger.gguf")
    messages = [
        Hello(version=PROTOCOL_VERSION, incarnation="a" * 32, role="gateway", name="fuzz"),
        Submit(jobs=[job]),
        Submit(jobs=[text]),
        Submit(jobs=[structs.replace(text, model=stranger.id)], profile=stranger),
        Abort(jobs=[JobKey("0" * 32, 0)]),
        Beat(incarnation="a" * 32, jobs=[JobKey("0" * 32, 0)]),
        *[ask(request="r") for ask in (Status, Discover, Health, Models, Version, Memory, ReadEvents, ClearCache)],
        *[ask(request="r", model=FRAMES_MODEL) for ask in (Load, Unload, Pin, Unpin, Effective)],
        Claim(request="r", model=FRAMES_MODEL, choice="beast", refused=["a"]),
        CancelJobs(request="r", target="0" * 32),
        ReadLog(request="r", child="prep"),
    ]
    return [encode(m) for m in messages]


def _codec(data: bytes) -> None:
    for decode in (decode_to_neuron, decode_from_neuron):
        try:
            decode(data)
        except ProtocolError:
            continue


def _parsers(data: bytes) -> None:
    """Cut as the data say; whatever is a call has a name, and arguments that are a JSON object."""
    text = data.decode(errors="replace")
    size = len(data) % 7 + 1
    for syntax in SYNTAXES.values():
        for markers in (None, reasoning.THINK):
            parser = Family(markers, syntax).parser(TOOLS, is_open=markers is not None)
            if parser is None:
                continue
            deltas = [d for at in range(0, len(text), size) for d in parser.push(text[at : at + size])]
            for delta in deltas + parser.finish():
                if isinstance(delta, Call):
                    assert delta.name
                    assert isinstance(json.loads(delta.arguments), dict)


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._data), 50):
            yield self._data[at : at + 50]


def _sse(data: bytes) -> None:
    async def read() -> None:
        answer = httpx.Response(200, stream=_Pieces(data))
        reply = upstream.Reply()
        try:
            async for text, thought in upstream._read(answer, reply):
                assert isinstance(text + thought, str)
        except upstream.UpstreamError:
            return
        reply.name_calls(set())

    asyncio.run(read())


def _gguf(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        try:
            header = read_header(Path(file.name))
        except DamagedHeader:
            return
        assert header.needed_bytes >= 0


_ANTHROPIC = AnthropicMessages(normalizes_stamp=True)
_DIALECTS: list[Dialect] = [
    OpenAIChat(), OpenAICompletions(), OpenAIResponses(), _ANTHROPIC, Embeddings(), Reranking(), LlamaInfill(),
]  # fmt: skip
_QUESTIONS: list[Asking] = [AnthropicCount(_ANTHROPIC), OpenAIInputTokens(), Tokenize(), Detokenize(), ApplyTemplate()]
_BOUNDS = Bounds(messages=100, tools=10, nesting=20, stop=8, schema_bytes=2000, grammar_bytes=2000)


def _bodies(data: bytes) -> None:
    for dialect in _DIALECTS:
        try:
            check(dialect.read(data).generation, _BOUNDS)
        except RequestError:
            continue
    for asking in _QUESTIONS:
        try:
            check_input(asking.read(data).input, _BOUNDS)
        except RequestError:
            continue


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _gguf_examples() -> list[bytes]:
    values = _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")
    values += _text(b"general.alignment") + struct.pack("<II", 4, 32)
    values += _text(b"tokens") + struct.pack("<IIQ", 9, 8, 3) + _text(b"a") + _text(b"bc") + _text(b"")
    values += _text(b"scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
    values += _text(b"llama.context_length") + struct.pack("<IQ", 10, 4096)
    tensor = _text(b"blk.0.w") + struct.pack("<IQQIQ", 2, 32, 4, 2, 0)
    return [b"GGUF" + struct.pack("<IQQ", version, 1, 5) + values + tensor + bytes(200) for version in (2, 3)]


def _sse_examples() -> list[bytes]:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}
    chunks: list[object] = [
        {"choices": [{"delta": {"role": "assistant", "content": "hé"}}]},
        {"choices": [{"delta": {"reasoning_content": "hm", "tool_calls": [call]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        {"error": {"message": "no"}},
    ]
    lines = [b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks]
    return [b": ping\n\n" + b"".join(lines[:4]) + b"data: [DONE]\n\n", lines[0] + b"event: error\n" + lines[4]]


def request_bodies() -> list[tuple[str, bytes]]:
    """Return bodies as clients send them, each with its path."""
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": TOOLS["weather"]}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOLS["weather"]}}
    chat: dict[str, object] = {
        "model": "m",
        "messages": [message],
        "tools": [tool],
        "tool_choice": "auto",
        "stream": True,
        "stop": ["x"],
    }
    wanted = {"response_format": schema, "temperature": 0.5, "logit_bias": {"5": 1}}
    claude: dict[str, object] = {
        "model": "m",
        "system": "s",
        "messages": [message],
        "tools": [{"name": "f", "input_schema": {}}],
    }
    items: list[dict[str, object]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"},
    ]
    gap: dict[str, object] = {
        "model": "m",
        "input_prefix": "a",
        "input_suffix": "b",
        "input_extra": [{"filename": "x", "text": "y"}],
    }
    bodies: list[tuple[str, dict[str, object]]] = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {"model": "m", "messages": [message], **wanted}),
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "n": 2}),
        ("/v1/completions", {"model": "m", "prompt": "a", "grammar": 'root ::= "x"', "logprobs": 2, "echo": True}),
        ("/v1/messages", {**claude, "max_tokens": 5}),
        ("/v1/messages/count_tokens", claude),
        ("/v1/responses", {"model": "m", "input": items, "instructions": "I", "stream": True}),
        ("/v1/responses/input_tokens", {"model": "m", "input": "hi"}),
        ("/v1/embeddings", {"model": "m", "input": ["a", [1, 2]]}),
        ("/v1/rerank", {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]}),
        ("/infill", {**gap, "n_predict": 3}),
        ("/tokenize", {"model": "m", "content": "a b", "add_special": True}),
        ("/detokenize", {"model": "m", "tokens": [1, 2, 3]}),
        ("/apply-template", {"model": "m", "messages": [message]}),
    ]
    return [(path, orjson.dumps(body)) for path, body in bodies]


TARGETS: dict[str, Target] = {
    "codec": Target([*frames(), encode(Tokens(items=[TokenItem("j", 0, 0, "x", [1])]))], _codec),
    "parsers": Target([f"hm</think>{s.render(CALLS)} tail".encode() for s in SYNTAXES.values()], _parsers),
    "sse": Target(_sse_examples(), _sse),
    "gguf": Target(_gguf_examples(), _gguf),
    "bodies": Target([body for _, body in request_bodies()], _bodies),
}
