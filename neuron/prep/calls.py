"""The grammar that holds an answer to calls of the request's tools, in the format of the model's template. Pure."""

from common.errors import Code, RequestError
from common.formats.contract import Schema
from common.formats.family import Family
from common.messages import Chat, Grammar
from neuron.prep.constraint import check
from neuron.prep.schema import SchemaRules
from neuron.prep.vocabulary import Vocabulary


class _ToolRules(SchemaRules):
    """Names the tool in errors."""

    def schema(self, name: str, schema: Schema, path: str | None = None) -> str:
        """Add a rule for the JSON values that fit a schema and return its name."""
        return super().schema(name, schema, path or f"tools.{name.removesuffix('-arguments')}")


def call_grammar(chat: Chat, family: Family, vocabulary: Vocabulary, *, thinking_open: bool) -> Grammar | None:
    """Return the grammar of a chat that must be answered with calls; None for others. Raises RequestError."""
    if chat.tool_choice != "required":
        return None
    functions = (tool["function"] for tool in chat.tools)
    tools = {f["name"]: _arguments(f.get("parameters")) for f in functions if chat.tool_name in (None, f["name"])}
    if not tools:
        raise RequestError(Code.INVALID_VALUE, "tool_choice: names none of the tools", param="tool_choice")
    rules = _ToolRules("tools")
    is_parallel = chat.parallel_tool_calls and chat.tool_name is None
    gbnf = rules.render(family.syntax.grammar(rules, tools, is_parallel=is_parallel))
    check(gbnf, "tools", "the grammar that the tools become", vocabulary)
    # Thoughts are free; the calls after them are what was asked for.
    triggers = [family.reasoning.end] if thinking_open and family.reasoning is not None else []
    return Grammar(gbnf=gbnf, triggers=triggers)


def _arguments(schema: Schema | None) -> Schema:
    """Return a schema of an object; without one no arguments are known."""
    return {"properties": {}, **(schema or {}), "type": "object"}
