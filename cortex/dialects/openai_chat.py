"""POST /v1/chat/completions: OpenAI's chat request to jobs."""

from typing import Annotated, Any

from msgspec import Meta

from common.messages import Chat, Grammar
from cortex.dialects import openai_fields
from cortex.dialects.answer import Offer
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value, unsupported
from cortex.dialects.effort import Effort, effort_arguments
from cortex.dialects.openai_chat_reply import ChatBody, ChatStream
from cortex.dialects.openai_fields import Fields, TokenLimit
from cortex.dialects.openai_format import read_constraint
from cortex.dialects.openai_messages import read_messages
from cortex.dialects.openai_tools import combine, read_choice, read_tools, schemas


class ChatFields(Fields, frozen=True, kw_only=True):
    """The request's body."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: TokenLimit | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None


decode = BodyDecoder(ChatFields)


class ChatRequest:
    """A chat request that has been read."""

    def __init__(self, fields: ChatFields) -> None:
        limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
        self._includes_usage = fields.includes_usage
        chat, self._offer = read_chat(fields)
        constraint, field = read_constraint(fields.response_format, fields.json_schema, fields.grammar)
        if isinstance(constraint, Grammar) and chat.tools:
            raise unsupported(
                "grammar", 'leave it out, or send "tool_choice": "none"; JSON can be asked for beside tools'
            )
        self.generation = Generation(
            model=fields.model,
            inputs=[chat],
            n=fields.n or 1,
            sampling=openai_fields.read_sampling(fields),
            constraint=constraint,
            constraint_field=field,
            logprobs=_read_logprobs(fields),
            max_tokens=openai_fields.read_limit(limit),
            is_stream=bool(fields.stream),
        )

    def stream(self, heading: Heading) -> ChatStream:
        """Return the empty stream of the reply."""
        return ChatStream(heading, self.generation, self._offer, includes_usage=self._includes_usage)

    def body(self, heading: Heading) -> ChatBody:
        """Return the empty body of the reply."""
        return ChatBody(heading, self.generation, self._offer)


class OpenAIChat:
    """Implements contract.Dialect."""

    name = "openai_chat"

    def read(self, body: bytes) -> ChatRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        fields = decode(body)
        openai_fields.check(fields)
        _refuse_unsupported(fields)
        return ChatRequest(fields)


def read_chat(fields: ChatFields) -> tuple[Chat, Offer | None]:
    """Return the conversation, and what the model may call. Raises RequestError naming the field."""
    tools = read_tools(fields.tools)
    choice = read_choice(fields.tool_choice, set(schemas(tools)))
    is_parallel = fields.parallel_tool_calls is not False
    chosen = combine(tools, choice, is_parallel=is_parallel)
    chat = Chat(
        messages=read_messages(fields.messages),
        template_kwargs={**effort_arguments(fields.reasoning_effort), **(fields.chat_template_kwargs or {})},
        tools=chosen.tools,
        tool_choice=chosen.choice,
        tool_name=chosen.name,
        parallel_tool_calls=is_parallel,
    )
    return chat, chosen.offer


def _read_logprobs(fields: ChatFields) -> int | None:
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise invalid_value("top_logprobs", "left out unless logprobs is true")
    return None


def _refuse_unsupported(fields: ChatFields) -> None:
    later = "leave it out; this version generates text only"
    openai_fields.refuse(
        ("functions", bool(fields.functions), "use tools"),
        ("function_call", fields.function_call not in (None, "none", "auto"), "use tool_choice"),
        ("modalities", fields.modalities not in (None, [], ["text"]), 'use ["text"] or leave it out'),
        ("audio", fields.audio is not None, later),
    )
