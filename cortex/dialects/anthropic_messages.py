"""POST /v1/messages: Anthropic's request to jobs."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.messages import Chat, JsonSchema, Sampling
from cortex.dialects import openai_fields
from cortex.dialects.answer import Offer
from cortex.dialects.anthropic_blocks import read_messages, read_system
from cortex.dialects.anthropic_reply import MessageBody, MessageStream
from cortex.dialects.canonical import Generation
from cortex.dialects.contract import Heading
from cortex.dialects.decoding import BodyDecoder, invalid_value, missing_field
from cortex.dialects.effort import Effort, effort_arguments, thinking_arguments
from cortex.dialects.openai_fields import MAX_INT32, Share, TokenLimit
from cortex.dialects.openai_format import check_schema
from cortex.dialects.openai_tools import Choice, check_function, combine, named


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Only the part that is acted on; `budget_tokens` is not."""

    type: Literal["enabled", "adaptive", "disabled"]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Only the part that is acted on."""

    effort: Effort | None = None
    format: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which tool is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountFields(msgspec.Struct, frozen=True, kw_only=True):
    """The body of count_tokens, and what /v1/messages shares with it. Unknown fields are ignored."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    system: str | list[Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessageFields(CountFields, frozen=True, kw_only=True):
    """The request's body."""

    max_tokens: TokenLimit
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] | None = None


_FORMAT = "output_config.format"
_decode = BodyDecoder(MessageFields)
_decode_count = BodyDecoder(CountFields)


class MessageRequest:
    """A request that has been read."""

    def __init__(self, fields: MessageFields, *, normalizes_stamp: bool) -> None:
        chat, self._offer = read_chat(fields, normalizes_stamp=normalizes_stamp)
        form = None if fields.output_config is None else fields.output_config.format
        self.generation = Generation(
            model=fields.model,
            inputs=[chat],
            sampling=Sampling(
                temperature=fields.temperature,
                top_p=fields.top_p,
                top_k=None if fields.top_k is None else max(0, fields.top_k),
                stop=fields.stop_sequences or [],
            ),
            constraint=None if form is None else _read_format(form),
            constraint_field=f"{_FORMAT}.schema",
            max_tokens=openai_fields.read_limit(fields.max_tokens),
            is_stream=bool(fields.stream),
        )

    def stream(self, heading: Heading) -> MessageStream:
        """Return the empty stream of the reply."""
        return MessageStream(heading, self._offer)

    def body(self, heading: Heading) -> MessageBody:
        """Return the empty body of the reply."""
        return MessageBody(heading, self._offer)


class AnthropicMessages:
    """Implements contract.Dialect."""

    name = "anthropic_messages"

    def __init__(self, *, normalizes_stamp: bool = True) -> None:
        """`normalizes_stamp`: make the checksum in Claude Code's attribution line constant."""
        self._normalizes_stamp = normalizes_stamp

    def read(self, body: bytes) -> MessageRequest:
        """Return the request in an HTTP body. Raises RequestError naming the field."""
        return MessageRequest(_decode(body), normalizes_stamp=self._normalizes_stamp)

    def read_count(self, body: bytes) -> tuple[str, Chat]:
        """Return the model and the conversation in the body of count_tokens. Raises RequestError."""
        fields = _decode_count(body)
        return fields.model, read_chat(fields, normalizes_stamp=self._normalizes_stamp)[0]


def read_chat(fields: CountFields, *, normalizes_stamp: bool) -> tuple[Chat, Offer | None]:
    """Return the conversation, and what the model may call. Raises RequestError naming the field."""
    tools = _read_tools(fields.tools or [])
    given = fields.tool_choice
    is_parallel = given is None or given.disable_parallel_tool_use is not True
    chosen = combine(tools, _read_choice(given, {t["function"]["name"] for t in tools}), is_parallel=is_parallel)
    arguments: dict[str, Any] = {}
    if fields.output_config is not None:
        arguments |= effort_arguments(fields.output_config.effort)
    if fields.thinking is not None:
        arguments |= thinking_arguments(is_on=fields.thinking.type != "disabled")
    chat = Chat(
        messages=[*read_system(fields.system, normalizes_stamp=normalizes_stamp), *read_messages(fields.messages)],
        template_kwargs=arguments,
        tools=chosen.tools,
        tool_choice=chosen.choice,
        tool_name=chosen.name,
        parallel_tool_calls=is_parallel,
    )
    return chat, chosen.offer


def _read_format(form: dict[str, Any]) -> JsonSchema:
    """Return what the answer is held to."""
    kind = form.get("type")
    if kind is None:
        raise missing_field(f"{_FORMAT}.type", "json_schema")
    if kind != "json_schema":
        raise invalid_value(f"{_FORMAT}.type", "json_schema")
    if "schema" not in form:
        raise missing_field(f"{_FORMAT}.schema", "a JSON schema, as an object")
    return JsonSchema(schema=check_schema(form["schema"], f"{_FORMAT}.schema"))


def _read_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools in OpenAI's form. Those that run on the vendor's servers are skipped: nobody here runs them."""
    out = []
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            continue
        path = f"tools[{index}]"
        check_function(tool, path, seen, schema="input_schema")
        schema = tool.get("input_schema")
        if schema is None:
            raise missing_field(f"{path}.input_schema", "a JSON schema, as an object")
        function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": schema}
        out.append({"type": "function", "function": function})
    return out


def _read_choice(choice: ToolChoice | None, names: set[str]) -> Choice:
    if choice is None:
        return Choice("auto")
    if choice.type == "tool":
        return named(choice.name, names, "tool_choice.name")
    if choice.type == "any":
        if not names:
            raise invalid_value("tool_choice.type", "auto or none where there are no tools")
        return Choice("required")
    return Choice(choice.type)
