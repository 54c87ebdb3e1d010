"""What answers are held to, for every format: whatever the grammar allows, the parser reads, and it fits the schema."""

import json
from random import Random
from typing import Any

import jsonschema
import pytest

from common.errors import Code, RequestError
from common.formats.contract import Call, Content, Delta, Reasoning, Syntax
from common.formats.family import SYNTAXES, Family
from common.formats.gbnf import until
from common.formats.reasoning import THINK
from common.messages import Chat, Grammar, Job, JsonObject, JsonSchema, Sampling
from neuron.prep.calls import chat_grammar
from neuron.prep.tags import TagRules
from tests.support.grammar_texts import Texts
from tests.support.schemas import ODD_SCHEMAS, SCHEMAS, TEXT, thing

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


def grammar(syntax: Syntax, *, thinking_open: bool = False, constraint: Any = None, **chat: Any) -> Any:
    sampling = chat.pop("sampling", Sampling())
    asked = Chat(messages=[], tools=chat.pop("tools", [tool("weather"), tool("now", {})]), **chat)
    job = Job(id="j", attempt=0, model="m", request_id="r", input=asked, constraint=constraint, sampling=sampling)
    reader: Any = Reader()
    return chat_grammar(job, asked, family(syntax), reader, thinking_open=thinking_open)


def family(syntax: Syntax) -> Family:
    return Family(None if syntax.name in ("harmony", "functionary") else THINK, syntax)


def read(syntax: Syntax, tools: dict[str, Any], text: str) -> list[Delta]:
    parser = family(syntax).parser(tools, is_open=False)
    assert parser is not None
    return [*parser.push(text), *parser.finish()]


@pytest.mark.parametrize("name", sorted(SYNTAXES))
def test_every_format_has_a_grammar_that_passes_the_checks(name: str) -> None:
    made = grammar(SYNTAXES[name], tool_choice="required")
    assert made.triggers == []
    assert "weather" in made.gbnf
    assert "now" in made.gbnf


def test_a_named_function_is_the_only_one() -> None:
    made = grammar(SYNTAXES["hermes"], tool_choice="required", tool_name="now")
    assert "weather" not in made.gbnf
    assert "{0,15}" not in made.gbnf.splitlines()[0], "one call"


def test_thoughts_that_the_prompt_began_stay_free() -> None:
    assert grammar(SYNTAXES["hermes"], tool_choice="required", thinking_open=True).triggers == ["</think>"]


def test_a_free_choice_is_not_constrained() -> None:
    assert grammar(SYNTAXES["hermes"]) is None


@pytest.mark.parametrize("name", sorted(SYNTAXES))
def test_whatever_a_forced_call_is_held_to_allows_is_read_as_calls_that_fit(name: str) -> None:
    syntax = SYNTAXES[name]
    for number, schema in enumerate([*SCHEMAS, *ODD_SCHEMAS]):
        tools = {"get-it": schema, "other": thing(x=TEXT)}
        made = grammar(syntax, tools=[tool(n, s) for n, s in tools.items()], tool_choice="required")
        texts = Texts(made.gbnf, Random(number))
        checks = {n: jsonschema.Draft202012Validator(s) for n, s in tools.items()}
        for _ in range(4):
            text = texts.draw()
            deltas = read(syntax, tools, text)
            assert deltas, text
            for delta in deltas:
                assert isinstance(delta, Call | Reasoning), (text, deltas)
                if isinstance(delta, Call):
                    checks[delta.name].validate(json.loads(delta.arguments))
            assert isinstance(deltas[-1], Call), text


@pytest.mark.parametrize("name", sorted(SYNTAXES))
@pytest.mark.parametrize("constraint", [JsonSchema(schema=thing(answer=TEXT)), JsonObject()])
def test_beside_tools_an_answer_is_the_json_that_was_asked_for_or_calls(name: str, constraint: Any) -> None:
    syntax, tools = SYNTAXES[name], {"weather": SCHEMA}
    made = grammar(syntax, tools=[tool("weather")], constraint=constraint)
    texts, seen = Texts(made.gbnf, Random(1)), set()
    for _ in range(40):
        text = texts.draw()
        deltas = [d for d in read(syntax, tools, text) if not isinstance(d, Reasoning)]
        said = "".join(d.text for d in deltas if isinstance(d, Content))
        calls = [d for d in deltas if isinstance(d, Call)]
        assert bool(said) != bool(calls), (text, deltas)
        seen.add(bool(said))
        if said:
            value = json.loads(said)
            assert isinstance(value, dict)
            if isinstance(constraint, JsonSchema):
                jsonschema.validate(value, constraint.schema)
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert seen == {False, True}


def test_without_tools_json_comes_after_thoughts_that_the_model_may_begin_itself() -> None:
    asked = JsonSchema(schema={"const": 1})
    free = grammar(SYNTAXES["hermes"], tools=[], constraint=asked)
    assert free.triggers == []
    drawn = {Texts(free.gbnf, Random(n)).draw().strip()[:7] for n in range(20)}
    assert {d[:1] for d in drawn} == {"1", "<"}
    begun = grammar(SYNTAXES["hermes"], tools=[], constraint=asked, thinking_open=True)
    assert begun.triggers == ["</think>"]
    assert "think" not in begun.gbnf
    own = Grammar(gbnf='root ::= "x"\n')
    assert grammar(SYNTAXES["hermes"], tools=[], constraint=own) == own
    channels = grammar(SYNTAXES["harmony"], tools=[], constraint=asked).gbnf
    assert "<|channel|>final<|message|>" in channels


@pytest.mark.parametrize("marker", ["</parameter>", "<|end|>", "[/THINK]", "</｜DSML｜parameter>", "ab"])
def test_text_up_to_a_marker_never_holds_it(marker: str) -> None:
    texts = Texts(f"root ::= {until(marker)}\n", Random(2))
    drawn = [texts.draw() for _ in range(300)]
    assert not any(marker in text for text in drawn)
    assert any(marker[0] * 2 in text for text in drawn), "two beginnings in a row are told apart"


def test_an_answer_that_must_call_must_be_able_to_end() -> None:
    with pytest.raises(RequestError) as caught:
        grammar(SYNTAXES["hermes"], tool_choice="required", sampling=Sampling(ignore_eos=True))
    assert caught.value.param == "ignore_eos"


def test_arguments_that_are_written_one_by_one_must_be_declared() -> None:
    either = {"anyOf": [thing(a=TEXT), thing(b=TEXT)]}
    assert grammar(SYNTAXES["hermes"], tools=[tool("f", either)], tool_choice="required")
    with pytest.raises(RequestError) as caught:
        grammar(SYNTAXES["qwen-xml"], tools=[tool("f", either)], tool_choice="required")
    assert caught.value.param == "tools.f.anyOf"
    pointed = {"$ref": "#/$defs/a", "$defs": {"a": thing(a=TEXT)}}
    for name in ("hermes", "qwen-xml", "pythonic"):
        made = grammar(SYNTAXES[name], tools=[tool("f", pointed)], tool_choice="required")
        call = read(SYNTAXES[name], {"f": pointed}, Texts(made.gbnf, Random(4)).draw())[-1]
        assert isinstance(call, Call)
        assert list(json.loads(call.arguments)) == ["a"]


def test_text_between_tags_is_as_long_as_the_schema_says() -> None:
    rules = TagRules("f")
    rule = rules.bare("a", {"type": "string", "minLength": 3, "maxLength": 5}, "</a>")
    texts = Texts(rules.render(rule), Random(3))
    assert {len(texts.draw()) for _ in range(60)} == {3, 4, 5}


def test_a_schema_that_cannot_be_kept_is_refused_with_the_tool_s_name() -> None:
    bad = tool("f", {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}})
    with pytest.raises(RequestError) as caught:
        grammar(SYNTAXES["hermes"], tools=[bad], tool_choice="required")
    assert caught.value.code is Code.INVALID_VALUE
    assert caught.value.param is not None
    assert caught.value.param == "tools.f.properties.a.pattern"
