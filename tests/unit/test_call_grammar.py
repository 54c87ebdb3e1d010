"""The grammar of forced calls, for every format: llama.cpp's rules of notation, and what the parser reads agree."""

from typing import Any

import pytest

from common.errors import Code, RequestError
from common.formats.contract import Syntax
from common.formats.family import SYNTAXES, Family
from common.formats.reasoning import THINK
from common.messages import Chat
from neuron.prep.calls import call_grammar

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}


def tool(name: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA if schema is None else schema}}


class Reader:
    """A vocabulary that reads every grammar."""

    def can_parse(self, gbnf: str) -> bool:
        self.gbnf = gbnf
        return True


def grammar(syntax: Syntax, *, thinking_open: bool = False, **chat: Any) -> Any:
    asked = Chat(messages=[], tools=chat.pop("tools", [tool("weather"), tool("now", {})]), **chat)
    return call_grammar(asked, Family(THINK, syntax), Reader(), thinking_open=thinking_open)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(SYNTAXES))
def test_every_format_has_a_grammar_that_passes_the_checks(name: str) -> None:
    made = grammar(SYNTAXES[name], tool_choice="required")
    assert made.triggers == []
    assert "weather" in made.gbnf
    assert "now" in made.gbnf


def test_a_named_function_is_the_only_one() -> None:
    made = grammar(SYNTAXES["hermes"], tool_choice="required", tool_name="now")
    assert "weather" not in made.gbnf
    assert "{0," not in made.gbnf.splitlines()[0], "one call"


def test_thoughts_that_the_prompt_began_stay_free() -> None:
    assert grammar(SYNTAXES["hermes"], tool_choice="required", thinking_open=True).triggers == ["</think>"]


def test_a_free_choice_is_not_constrained() -> None:
    assert grammar(SYNTAXES["hermes"]) is None


def test_a_schema_that_cannot_be_kept_is_refused_with_the_tool_s_name() -> None:
    bad = tool("f", {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}})
    with pytest.raises(RequestError) as caught:
        grammar(SYNTAXES["hermes"], tools=[bad], tool_choice="required")
    assert caught.value.code is Code.INVALID_VALUE
    assert caught.value.param is not None
    assert caught.value.param.startswith("tools.f")
