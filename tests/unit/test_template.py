"""A template renders what the client wrote, and a hostile one costs one request."""

from typing import Any

import pytest

from common.errors import Code, RequestError
from neuron.prep import sandbox
from neuron.prep.template import ChatTemplate

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


def render(source: str | None, messages: list[Any], **arguments: object) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, arguments, [])


def test_without_a_template_chatml_is_used_and_nothing_is_added() -> None:
    text = render(None, [{"role": "user", "content": " two  spaces "}])
    assert text == "<|im_start|>user\n two  spaces <|im_end|>\n<|im_start|>assistant\n"


def test_a_familys_template_renders_as_its_authors_meant_it() -> None:
    text = render(LLAMA3, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert text == (
        "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_text_parts_become_their_concatenation() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    assert "user\na b<|im_end|>" in render(None, [{"role": "user", "content": parts}])


def test_null_content_is_empty_text() -> None:
    assert "assistant\n<|im_end|>" in render(None, [{"role": "assistant", "content": None}])


def test_extra_arguments_reach_the_template() -> None:
    assert render("{{ enable_thinking }}", [], enable_thinking=False) == "False"


def test_messages_are_not_changed_by_rendering() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": None}]
    render(None, messages)
    assert messages == [{"role": "user", "content": None}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (STRICT, "only user and assistant"),
        ("{{ ''.__class__.__mro__ }}", "not allowed|unsafe"),
        ("{{ messages.append(1) }}", "not allowed|unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ undefined_thing.attribute }}", "undefined"),
    ],
)
def test_a_template_that_fails_is_an_error_in_its_own_words(source: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected) as caught:
        render(source, [{"role": "critic", "content": "x"}])
    assert caught.value.code is Code.TEMPLATE_FAILED


def test_a_template_that_is_no_template_is_an_error() -> None:
    with pytest.raises(RequestError, match="chat template failed"):
        ChatTemplate("{% if %}", bos="", eos="")


def test_a_template_that_computes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_S", 0.05)
    monkeypatch.setattr("neuron.prep.template._ASKING_S", 0.01)
    slow = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="took longer than"):
        render(slow, [])


@pytest.mark.parametrize(
    "source",
    ["{{ 'x' * 99999999999 }}", "{{ [0] * 99999999999 }}", "{{ 9 ** 99999999 }}", "{{ (2 ** 4000) * (2 ** 4000) }}"],
)
def test_arithmetic_that_c_would_compute_for_ever_is_refused(source: str) -> None:
    with pytest.raises(RequestError, match=r"not allowed to do that: the result of .* would be too large"):
        render(source, [])


def test_a_template_that_takes_too_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY_MB", 64)
    greedy = "{% set ns = namespace(t='x' * 1000000) %}{% for i in range(12) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
    with pytest.raises(RequestError, match="needs more than"):
        render(greedy, [])
    assert render("fine", []) == "fine"


def test_a_template_that_writes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "OUTPUT_CHARACTERS", 10_000)
    chatty = "{% for i in range(10) %}{{ 'x' * 1001 }}{% endfor %}"
    with pytest.raises(RequestError, match="it wrote more than 10000 characters"):
        render(chatty, [])
    assert len(render(chatty.replace("1001", "1000"), [])) == 10_000


def test_the_requests_own_fields_cannot_be_given_twice() -> None:
    with pytest.raises(RequestError, match="'messages' is given by the request itself"):
        ChatTemplate("x", bos="", eos="").render([], {"messages": []}, [])


# What follows are the ways of templates of real families, in few words.
FIRST_SYSTEM_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('must be first') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}S: {{ messages[0].content }}\n{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
LOSES_LATER_SYSTEMS = (
    "{% if messages[0].role == 'system' %}[system] {{ messages[0].content }}\n{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}{% endfor %}"
)
LAST_SYSTEM_WINS = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}"
    "{% endif %}{% endfor %}[system] {{ ns.s }}\n"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}{% endfor %}"
)
LOSES_SYSTEMS = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}{% endfor %}"
)
SYSTEMS = [
    {"role": "system", "content": "one"}, {"role": "system", "content": "two"}, {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"}, {"role": "system", "content": "three"}, {"role": "user", "content": "c"},
    {"role": "system", "content": "four"},
]  # fmt: skip


@pytest.mark.parametrize("source", [FIRST_SYSTEM_ONLY, ALTERNATING, LOSES_LATER_SYSTEMS, LAST_SYSTEM_WINS])
def test_later_system_messages_are_neither_lost_nor_refused(source: str) -> None:
    text = render(source, SYSTEMS)
    assert text.replace("S: ", "[system] ") == (
        "[system] one\n\ntwo\n[user] a\n[assistant] b\n[user] three\n\nc\n\nfour\n"
    )


def test_a_system_message_that_would_be_lost_stands_before_what_the_user_says() -> None:
    assert render(LOSES_SYSTEMS, SYSTEMS[:3]) == "[user] one\n\ntwo\n\na\n"
    assert render(LOSES_SYSTEMS, SYSTEMS[:1]) == "[user] one\n"


def test_a_template_that_refuses_system_messages_gets_them_from_the_user() -> None:
    assert render(STRICT, SYSTEMS[:3]) == "one\n\ntwo\n\na"
    assert render(STRICT, SYSTEMS) == "one\n\ntwo\n\nabthree\n\nc\n\nfour"
    tools = ChatTemplate(STRICT, bos="", eos="").render(SYSTEMS[:3], {}, TOOLS)
    assert "one" in tools
    assert '"name": "f"' in tools


def test_messages_of_one_role_are_joined_where_a_template_refuses_them_in_a_row() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert render(ALTERNATING, said) == "[user] a\n\nb\n[assistant] c\n"
    assert render(LOSES_SYSTEMS, said) == "[user] a\n[user] b\n[assistant] c\n"


def test_a_template_of_the_time_of_functions_gets_the_tools_as_text() -> None:
    source = "Functions: {{ functions }}{% for m in messages %}<{{ m.role }} {{ m.content }}>{% endfor %}"
    template = ChatTemplate(source, bos="", eos="")
    assert template.render([{"role": "user", "content": "a"}], {}, []) == "Functions: <user a>"
    text = template.render(calls("f"), {}, TOOLS)
    assert text.count('"name": "f"') == 2, "announced once, called once"


def test_a_template_that_shows_them_anywhere_gets_them_where_they_are() -> None:
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    assert render(source, SYSTEMS) == "".join(f"[{m['role']}] {m['content']}\n" for m in SYSTEMS)


def calls(*names: str) -> list[dict[str, Any]]:
    """Return a turn with these calls, and their results."""
    made: list[dict[str, Any]] = [
        {"id": f"call0000{n}", "type": "function", "function": {"name": name, "arguments": f'{{"k": "v{n}"}}'}}
        for n, name in enumerate(names)
    ]
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": c["id"], "content": f"r{n}"} for n, c in enumerate(made)
    ]
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so", "tool_calls": made}, *results]


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
ONE_CALL = (
    "{{ tools | tojson if tools }}\n{% for m in messages %}{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only single tool-calls') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    "<{{ m.content }}{{ f.name }}{{ f.arguments | tojson }}>{% else %}<{{ m.role }} {{ m.content }}>{% endif %}"
    "{% endfor %}"
)
SHOWS_NO_CALLS = (
    "{% if tools %}<|tool_list_start|>{{ tools | tojson }}{% endif %}\n"
    "{% for m in messages %}<{{ m.role }} {{ m.content }}>{% endfor %}"
)


def test_several_calls_are_one_by_one_where_a_template_takes_no_more() -> None:
    text = ChatTemplate(ONE_CALL, bos="", eos="").render(calls("f", "g"), {}, TOOLS)
    assert text.split("\n")[1] == '<user q><sof{"k": "v0"}><tool r0><g{"k": "v1"}><tool r1>'


def test_calls_that_a_template_does_not_show_are_written_as_its_model_does() -> None:
    template = ChatTemplate(SHOWS_NO_CALLS, bos="", eos="")
    assert template.family.syntax.name == "lfm"
    text = template.render(calls("f"), {}, TOOLS)
    assert "<user q><assistant so<|tool_call_start|>[f(" in text
    assert "v0" in text
    assert text.endswith("<tool r0>")


def test_a_template_that_goes_through_its_tools_unasked_works_without_any() -> None:
    source = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert render(source, [{"role": "user", "content": "a"}]) == "a"
    assert ChatTemplate(source, bos="", eos="").render([{"role": "user", "content": "a"}], {}, TOOLS) == "fga"


def test_a_template_may_fill_lists_of_its_own_and_dump_what_a_filter_gives() -> None:
    source = (
        "{% set ns = namespace(q=[]) %}{% set _ = ns.q.append('x') %}{% set _ = ns.q.append('y') %}{{ ns.q.pop(0) }}"
        "{{ messages | map(attribute='role') | tojson }}"
    )
    assert render(source, [{"role": "user", "content": "a"}]) == 'x["user"]'
