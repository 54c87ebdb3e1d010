"""What a chat's answer is held to, in the format of the model's template: calls of tools, JSON, or either. Pure."""

from typing import Any

from common.errors import Code, RequestError
from common.formats.contract import Schema
from common.formats.family import Family
from common.formats.gbnf import SPACE, literal, until
from common.formats.values import resolve as resolve_reference
from common.messages import Chat, Grammar, Job, JsonSchema
from neuron.prep.constraint import check, check_request, resolve
from neuron.prep.schema import LEAD, SchemaRules, refusal
from neuron.prep.tags import TagRules
from neuron.prep.vocabulary import Vocabulary

_OTHER_ROOTS = ("anyOf", "oneOf", "allOf", "const", "enum")
"""Ways to describe an object other than by its properties."""


def chat_grammar(
    job: Job, chat: Chat, family: Family, vocabulary: Vocabulary, *, thinking_open: bool
) -> Grammar | None:
    """Return the grammar that an answer is held to; None where it is free. Raises RequestError naming the field.

    Beside tools that may be called, JSON that was asked for is one of two things the answer can be; calls are held to
    their schemas then, too. Thoughts are free: the grammar begins after those that the prompt has begun, and lets the
    model begin with some.
    """
    asked, must_call = job.constraint, chat.tool_choice == "required"
    check_request(job)
    if must_call and job.sampling.ignore_eos:
        text = "ignore_eos: an answer that must be a call must be able to end; leave it out"
        raise RequestError(Code.INVALID_VALUE, text, param="ignore_eos")
    if asked is None and not must_call:
        return None
    if not must_call and (isinstance(asked, Grammar) or (asked is not None and asked.triggers)):
        return _after_thoughts(resolve(job, vocabulary), family, thinking_open=thinking_open)
    rules = TagRules(job.constraint_field)
    bodies = [_calls(chat, family, rules)] if chat.tools else []
    if not must_call:
        schema = asked.schema if isinstance(asked, JsonSchema) else None
        json = rules.use("object") if schema is None else rules.schema("answer", schema)
        bodies.append(family.syntax.answer(LEAD + json))
    root = " | ".join(bodies)
    if family.reasoning is not None and not thinking_open:
        begin, end = family.reasoning.begin, family.reasoning.end
        thoughts = f"{SPACE} {literal(begin)} {until(end)} {literal(end)} {SPACE} {SPACE}"
        root = f"( {thoughts} )? ( {root} )"
    gbnf = rules.render(root)
    if chat.tools:
        check(gbnf, "tools", "the grammar that the tools become", vocabulary)
    else:
        check(gbnf, job.constraint_field, "the grammar that the schema becomes", vocabulary)
    return _after_thoughts(Grammar(gbnf=gbnf), family, thinking_open=thinking_open)


def _after_thoughts(grammar: Grammar | None, family: Family, *, thinking_open: bool) -> Grammar | None:
    """Let the grammar begin after thoughts that the prompt has begun."""
    if grammar is None or grammar.triggers or not thinking_open or family.reasoning is None:
        return grammar
    return Grammar(gbnf=grammar.gbnf, triggers=[family.reasoning.end])


def _calls(chat: Chat, family: Family, rules: TagRules) -> str:
    """Return the body of a rule for the calls that a chat allows."""
    functions = (tool["function"] for tool in chat.tools)
    tools = {
        f["name"]: _arguments(f["name"], f.get("parameters"), needs_members=family.syntax.writes_members)
        for f in functions
        if chat.tool_name in (None, f["name"])
    }
    if not tools:
        raise RequestError(Code.INVALID_VALUE, "tool_choice: names none of the tools", param="tool_choice")
    is_parallel = chat.parallel_tool_calls and chat.tool_name is None
    return family.syntax.grammar(rules, tools, is_parallel=is_parallel)


def _arguments(name: str, given: Schema | None, *, needs_members: bool) -> Schema:
    """Return a schema of an object, checked by itself, so that errors name the tool and the path in its schema.

    `needs_members`: calls are written argument by argument, so that the schema must say which there are.
    """
    schema: dict[str, Any] = {"type": "object", **(given or {})}
    if isinstance(schema.get("$ref"), str) and needs_members:
        beside = {k: v for k, v in schema.items() if k in ("$defs", "definitions")}
        schema = {**beside, **resolve_reference(schema, schema)}
    other = next((word for word in _OTHER_ROOTS if word in schema), None)
    if other is not None and needs_members:
        raise refusal(f"tools.{name}.{other}", "cannot be enforced in this model's form of calls; declare properties")
    if other is None and "$ref" not in schema:
        schema = {"properties": {}, **schema}
    SchemaRules(f"tools.{name}").schema("arguments", schema)
    return schema
