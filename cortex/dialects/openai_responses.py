"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's Responses request to a job. Nothing is kept."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.errors import Code
from common.messages import Chat, JsonObject, JsonSchema, RenderedItem
from cortex.dialects import openai_fields
from cortex.dialects.answer import Offer
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value, missing_field
from cortex.dialects.effort import Effort, effort_arguments
from cortex.dialects.openai_fields import ModelName, SamplingFields, TokenLimit
from cortex.dialects.openai_format import check_schema
from cortex.dialects.openai_responses_items import read_input
from cortex.dialects.openai_responses_reply import ResponseBody, ResponseStream
from cortex.dialects.openai_tools import Choice, check_function, combine, read_choice, schemas
from cortex.dialects.question import Question

LOGPROBS = "message.output_text.logprobs"


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """Only the part that is acted on; thoughts are always told, as a summary of themselves."""

    effort: Effort | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Only the part that is acted on."""

    format: dict[str, Any] | None = None


class PromptFields(SamplingFields, frozen=True, kw_only=True):
    """The body of input_tokens, and what /v1/responses shares with it. Unknown fields are ignored."""

    model: ModelName
    input: str | list[Any]
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None


class ResponseFields(PromptFields, frozen=True, kw_only=True):
    """The request's body."""

    stream: bool | None = None
    max_output_tokens: TokenLimit | None = None
    include: list[Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None


_TOLD_IN_STREAM = frozenset({Code.CONTEXT_LENGTH_EXCEEDED})
"""Codex asks again and again at any other status than 200, and knows what to do about this code in a stream."""

_decode = BodyDecoder(ResponseFields)
_decode_prompt = BodyDecoder(PromptFields)


class ResponseRequest:
    """A request that has been read."""

    def __init__(self, fields: ResponseFields) -> None:
        chat, self._offer = read_chat(fields)
        constraint, field = _read_format(fields.text)
        wants_logprobs = LOGPROBS in (fields.include or ())
        if fields.top_logprobs and not wants_logprobs:
            raise invalid_value("top_logprobs", f"left out unless include has {LOGPROBS}")
        self._told = _echo(fields)
        self.generation = Generation(
            model=fields.model,
            inputs=[chat],
            sampling=openai_fields.read_sampling(fields),
            constraint=constraint,
            constraint_field=field,
            logprobs=(fields.top_logprobs or 0) if wants_logprobs else None,
            max_tokens=openai_fields.read_limit(fields.max_output_tokens),
            is_stream=bool(fields.stream),
            told_in_stream=_TOLD_IN_STREAM,
        )

    def stream(self, heading: Heading) -> ResponseStream:
        """Return the empty stream of the reply."""
        return ResponseStream(heading, self._offer, self._told)

    def body(self, heading: Heading) -> ResponseBody:
        """Return the empty body of the reply."""
        return ResponseBody(heading, self._offer, self._told)


class OpenAIResponses:
    """Implements contract.Dialect."""

    name = "openai_responses"

    def read(self, body: bytes) -> ResponseRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        fields = _decode(body)
        openai_fields.refuse(("background", bool(fields.background), "leave it out; a response is made at once"))
        return ResponseRequest(fields)


class OpenAIInputTokens:
    """Implements question.Asking."""

    name = "openai_input_tokens"

    def read(self, body: bytes) -> Question:
        """Return the question in an HTTP body. Raises RequestError naming the field."""
        fields = _decode_prompt(body)
        return Question(fields.model, read_chat(fields)[0])

    def write(self, item: RenderedItem) -> dict[str, Any]:
        """Return the reply."""
        return {"object": "response.input_tokens", "input_tokens": len(item.tokens)}


def read_chat(fields: PromptFields) -> tuple[Chat, Offer | None]:
    """Return the conversation, and what the model may call. Raises RequestError naming the field."""
    openai_fields.refuse(
        ("previous_response_id", fields.previous_response_id is not None, "no response is kept; send its items again"),
        ("conversation", fields.conversation is not None, "no conversation is kept; send its items in input"),
        ("prompt", fields.prompt is not None, "no prompts are kept; send input and instructions"),
    )
    tools = _read_tools(fields.tools or [])
    choice, tools = _read_choice(fields.tool_choice, tools)
    is_parallel = fields.parallel_tool_calls is not False
    chosen = combine(tools, choice, is_parallel=is_parallel)
    effort = None if fields.reasoning is None else fields.reasoning.effort
    chat = Chat(
        messages=read_input(fields.input, fields.instructions),
        template_kwargs={**effort_arguments(effort), **(fields.chat_template_kwargs or {})},
        tools=chosen.tools,
        tool_choice=chosen.choice,
        tool_name=chosen.name,
        parallel_tool_calls=is_parallel,
    )
    return chat, chosen.offer


def _read_tools(tools: list[Any]) -> list[dict[str, Any]]:
    """Return the functions as templates know them. Tools of other types, which nobody here runs, are skipped."""
    out: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_value(path, "an object")
        kind = tool.get("type")
        if not isinstance(kind, str):
            raise missing_field(f"{path}.type", "function")
        if kind != "function":
            continue
        check_function(tool, path, seen)
        function = {
            name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None
        }
        out.append({"type": "function", "function": function})
    return out


def _read_choice(choice: Any, tools: list[dict[str, Any]]) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the choice, and the tools that it leaves."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return read_choice(choice, set(schemas(tools)), is_flat=True), tools
    allowed = choice.get("tools")
    if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
        raise invalid_value("tool_choice.tools", "a list of tools, each with type and name")
    names = {tool.get("name") for tool in allowed}
    left = [tool for tool in tools if tool["function"]["name"] in names]
    mode = choice.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise invalid_value("tool_choice.mode", "auto or required")
    return read_choice(mode, set(schemas(left))), left


def _read_format(text: TextFormat | None) -> tuple[JsonSchema | JsonObject | None, str]:
    """Return what the answer is held to, and the field it came from."""
    form = None if text is None else text.format
    match None if form is None else form.get("type", ""):
        case None | "text":
            return None, "text.format"
        case "json_object":
            return JsonObject(), "text.format"
        case "json_schema":
            assert form is not None
            if form.get("schema") is None:
                raise missing_field("text.format.schema", "a JSON schema, as an object")
            return JsonSchema(schema=check_schema(form["schema"], "text.format.schema")), "text.format.schema"
        case _:
            raise invalid_value("text.format.type", "text, json_object or json_schema")


def _echo(fields: ResponseFields) -> dict[str, Any]:
    """Return what a response says about its request."""
    text = fields.text.format if fields.text is not None else None
    return {
        "background": False,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if fields.reasoning is None else fields.reasoning.effort, "summary": None},
        "store": False,
        "temperature": fields.temperature,
        "text": {"format": text or {"type": "text"}},
        "tool_choice": "auto" if fields.tool_choice is None else fields.tool_choice,
        "tools": fields.tools or [],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": fields.top_p,
        "truncation": "disabled",
        "user": fields.user,
    }
