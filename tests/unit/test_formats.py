"""Formats of reasoning and tool calls: what is read, wherever the text is cut, and that nothing is lost."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.formats import family
from common.formats.contract import Call, Content, Delta, Parser, Reasoning
from common.formats.family import SYNTAXES, Family
from common.formats.reasoning import FAMILIES, THINK

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}},
        "required": ["city"],
    },
    "now": {"type": "object", "properties": {}},
}
CALLS = [Call("weather", '{"city": "Zürich </tool_call> [\\"{", "days": 3, "deep": {"a": [1, null, "]"]}}'),
         Call("now", "{}")]  # fmt: skip
NAMES = sorted(SYNTAXES)


def merged(deltas: list[Delta]) -> list[Delta]:
    """Join neighbours of one kind, and make arguments comparable."""
    out: list[Delta] = []
    for delta in deltas:
        last = out[-1] if out else None
        if isinstance(delta, Call):
            out.append(Call(delta.name, json.dumps(json.loads(delta.arguments))))
        elif isinstance(delta, Content) and isinstance(last, Content):
            out[-1] = Content(last.text + delta.text)
        elif isinstance(delta, Reasoning) and isinstance(last, Reasoning):
            out[-1] = Reasoning(last.text + delta.text)
        else:
            out.append(delta)
    return out


def parser(name: str, *, reasoning: bool = False, is_open: bool = False) -> Parser:
    """Return a fresh parser of a format."""
    made = Family(THINK if reasoning else None, SYNTAXES[name]).parser(TOOLS, is_open=is_open)
    assert made is not None
    return made


def read(name: str, *pieces: str, reasoning: bool = False, is_open: bool = False) -> list[Delta]:
    """Parse pieces of an answer."""
    reader = parser(name, reasoning=reasoning, is_open=is_open)
    out = [delta for piece in pieces for delta in reader.push(piece)]
    return merged(out + reader.finish())


def cuts(text: str, at: list[int]) -> list[str]:
    """Cut a text at these places."""
    places = sorted({min(a, len(text)) for a in at})
    return [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


def same(calls: list[Call]) -> list[Delta]:
    return merged(list(calls))


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_read_as_they_are_written_at_every_split(name: str) -> None:
    text = SYNTAXES[name].render(CALLS)
    expected = same(CALLS)
    assert read(name, text) == expected
    assert read(name, *text) == expected
    for at in range(len(text)):
        assert read(name, text[:at], text[at:]) == expected, (text[:at], text[at:])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"llama-json", "pythonic", "harmony", "functionary"}))
def test_text_before_and_after_calls_is_content(name: str) -> None:
    text = "I look.\n\n" + SYNTAXES[name].render(CALLS[1:]) + "\nDone."
    assert read(name, *text) == [Content("I look."), Call("now", "{}"), Content("\nDone.")]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"harmony", "functionary"}))
def test_a_missing_end_is_forgiven_where_the_arguments_are_complete(name: str) -> None:
    text = SYNTAXES[name].render(CALLS[:1])
    syntax = SYNTAXES[name]
    closer = next((c for c in syntax.closers if text.endswith(c) and len(c) > 1), None)
    if closer is None or name in ("qwen-xml", "glm"):  # their arguments end with that tag only
        return
    assert read(name, *text.removesuffix(closer)) == same(CALLS[:1])


def lost(name: str, text: str, deltas: list[Delta]) -> str:
    """Return what of a text is found in no delta, space and markers left out."""
    joined = "".join(d.text if not isinstance(d, Call) else f"{d.name}{d.arguments}" for d in deltas)
    for marker in SYNTAXES[name].markers():
        if len(marker) > 1:
            text, joined = text.replace(marker, ""), joined.replace(marker, "")
    return "" if "".join(joined.split()) == "".join(text.split()) else f"{text!r} became {joined!r}"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"functionary"}))
def test_a_call_that_is_cut_off_is_never_swallowed(name: str) -> None:
    text = SYNTAXES[name].render(CALLS[:1])
    for at in range(1, len(text)):
        deltas = read(name, *text[:at])
        if not any(isinstance(d, Call) for d in deltas):
            assert lost(name, text[:at], deltas) == ""


WORDS = st.sampled_from([
    "<tool_call>", "</tool_call>", "<tool", "{", "}", "[", "]", '"', "\\", '{"name": "now"', "<|python_tag|>",
    '{"name": "now", "arguments": {}}', "<function=now>", "</function>", "<parameter=a>", "</parameter>",
    "<|tool_call|>", "[TOOL_CALLS]", "now[ARGS]{}", "<think>", "</think>", "now()", "[now()]", "<｜tool▁calls▁begin｜>",
    "<arg_key>",
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}", "a</arg_key><arg_value>", "</arg_value>", "<|channel|>", "analysis",
    "<|message|>", "<|end|>", " to=functions.now", ">>>", "all\n", "now\n", "<|START_ACTION|>", "<|END_ACTION|>", ";",
    " ", "\n", "x", "é🙂", "<", "plain words",
])  # fmt: skip


@given(
    name=st.sampled_from(NAMES), words=st.lists(WORDS, max_size=12), at=st.lists(st.integers(0, 120), max_size=8),
    reasoning=st.booleans(), is_open=st.booleans(),
)  # fmt: skip
def test_any_text_reads_the_same_however_it_is_cut(
    name: str, words: list[str], at: list[int], reasoning: bool, is_open: bool
) -> None:
    text = "".join(words)
    whole = read(name, text, reasoning=reasoning, is_open=is_open)
    assert read(name, *cuts(text, at), reasoning=reasoning, is_open=is_open) == whole
    assert read(name, *text, reasoning=reasoning, is_open=is_open) == whole


@given(name=st.sampled_from(sorted(set(NAMES) - {"functionary"})), words=st.lists(WORDS, max_size=12))
def test_text_without_a_call_stays_text(name: str, words: list[str]) -> None:
    text = "".join(words)
    deltas = read(name, text)
    if name == "harmony" and "<|message|>" in text:
        return  # its headers are no text
    if not any(isinstance(d, Call) for d in deltas):
        assert lost(name, text, deltas) == ""


@pytest.mark.parametrize("markers", FAMILIES, ids=lambda m: str(m.name))
@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_is_kept_apart_at_every_split(markers: Any, is_open: bool) -> None:
    text = f"{'' if is_open else markers.begin}\nfirst  {markers.end[:-1]} this\n{markers.end}\n\nthen that "
    expected = [Reasoning(f"first  {markers.end[:-1]} this"), Content("then that ")]
    made = Family(markers, SYNTAXES["hermes"])
    for at in range(len(text)):
        reader = made.parser(None, is_open=is_open)
        assert reader is not None
        assert merged([*reader.push(text[:at]), *reader.push(text[at:]), *reader.finish()]) == expected


def test_reasoning_that_is_cut_off_is_reasoning_and_complete() -> None:
    assert read("hermes", *"<think>half a thou", reasoning=True) == [Reasoning("half a thou")]
    assert read("hermes", *"half </thi", reasoning=True, is_open=True) == [Reasoning("half </thi")]


def test_a_tag_in_the_middle_of_an_answer_is_no_reasoning() -> None:
    assert read("hermes", *"use <think> tags", reasoning=True) == [Content("use <think> tags")]


def test_reasoning_comes_before_calls() -> None:
    text = '<think>which?</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert read("hermes", *text, reasoning=True) == [Reasoning("which?"), Call("now", "{}")]


def test_harmony_has_all_its_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look."
        '<|end|><|start|>assistant to=functions.now<|channel|>commentary <|constrain|>json<|message|>{"a": 1}'
    )
    assert read("harmony", *text) == [Reasoning("I think."), Content("Let me look."), Call("now", '{"a": 1}')]
    assert read("harmony", *"<|channel|>final<|message|>42 <|x|> y") == [Content("42 <|x|> y")]
    cut = "<|channel|>commentary to=functions.now<|message|>{"
    assert read("harmony", *cut) == [Content(cut)]


def test_functionary_has_text_and_calls() -> None:
    assert read("functionary", *'all\nI look.>>>now\n{"a": 1}>>>all\nok') == [
        Content("I look."), Call("now", '{"a": 1}'), Content("ok"),
    ]  # fmt: skip
    assert read("functionary", *"unknown\n{}") == [Content("unknown\n{}")]
    assert read("functionary", *"now\n{") == [Content("now\n{")]


def test_unknown_functions_in_bare_json_stay_text() -> None:
    for name, text in (("llama-json", '{"name": "nope", "parameters": {}}'), ("pythonic", "[nope(a=1)]")):
        assert read(name, *text) == [Content(text)]
    assert read("llama-json", *'{"a": 1}') == [Content('{"a": 1}')]
    assert read("pythonic", *"[1, 2]") == [Content("[1, 2]")]


def test_line_ends_in_strings_and_arguments_as_text_are_understood() -> None:
    assert read("hermes", '<tool_call>{"name": "now", "arguments": {"a": "1\n2"}}</tool_call>') == [
        Call("now", '{"a": "1\\n2"}')
    ]
    assert read("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>') == [
        Call("now", '{"a": 1}')
    ]


def test_values_in_tags_are_read_by_their_schema() -> None:
    def value(text: str, schema: dict[str, Any]) -> Any:
        tools = {"f": {"properties": {"a": schema}}}
        made = Family(None, SYNTAXES["qwen-xml"]).parser(tools, is_open=False)
        assert made is not None
        made.push(f"<tool_call>\n<function=f>\n<parameter=a>\n{text}\n</parameter>\n</function>\n")
        (call,) = made.finish()
        assert isinstance(call, Call)
        return json.loads(call.arguments)["a"]

    assert value("12", {"type": "string"}) == "12"
    assert value("12", {"type": "integer"}) == 12
    assert value("12", {}) == "12"
    assert value("True", {"type": "boolean"}) is True
    assert value("null", {"type": ["string", "null"]}) is None
    assert value("12", {"type": ["string", "null"]}) == "12"
    assert value('{"x": [1]}', {"type": "object"}) == {"x": [1]}
    assert value("broken {", {"type": "object"}) == "broken {"
    assert value(" a\n</parameter> b\n", {"type": "string"}) == " a\n</parameter> b\n"
    assert value("NaN", {"type": "number"}) == "NaN"
    assert value("3", {"enum": [1, 2, 3]}) == 3


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "+hermes"),
        ("<think> </think> {% if tools %}<tool_call>{% endif %}", "think+hermes"),
        ("<tool_call><function=a><parameter=b>", "+qwen-xml"),
        ("<tool_call><arg_key></think>", "think+glm"),
        ("[TOOL_CALLS][", "+mistral"),
        ("[TOOL_CALLS] [ARGS] [THINK]", "mistral-think+mistral-args"),
        ("<｜tool▁calls▁begin｜> ```json </think>", "think+deepseek-fenced"),
        ("<｜tool▁calls▁begin｜>", "+deepseek"),
        ("<|tool_calls_section_begin|>", "+kimi"),
        ("<|START_ACTION|><|START_THINKING|>", "command-think+command-r"),
        ("tools <|tool_call|>", "+granite"),
        ("<|channel|><|message|>", "+harmony"),
        (">>>all", "+functionary"),
        ("tools <function=", "+function-tag"),
        ("tools <|python_start|>", "+pythonic"),
        ('tools <|start_header_id|> "parameters"', "+llama-json"),
        ("<|tool_call_start|>", "+lfm"),
        ("{{ messages }}", "+hermes"),
    ],
)
def test_the_template_decides(template: str, name: str) -> None:
    found = family.detect(template)
    assert found.name == name
    assert family.find(name) == found


def test_plain_text_has_no_family() -> None:
    assert family.find("") is None
    assert family.find("think+nonsense") is None
