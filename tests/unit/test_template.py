"""A template renders what the client wrote, and a hostile one costs one request."""

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


def render(source: str | None, messages: list[dict[str, object]], **arguments: object) -> str:
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
        render(source, [{"role": "system", "content": "x"}])
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


def test_the_requests_own_fields_cannot_be_given_twice() -> None:
    with pytest.raises(RequestError, match="'messages' is given by the request itself"):
        ChatTemplate("x", bos="", eos="").render([], {"messages": []}, [])
