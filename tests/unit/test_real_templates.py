"""The chat templates of real models, as they were published: what a client sends is shown, and what is shown is read.

tests/templates/README.md says where they come from. With HELEXA_TEMPLATES a folder of more of them is read too, as
models/templates in the sources of llama.cpp: some licences do not let them be kept here.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.formats.contract import Call
from cortex.dialects.effort import effort_arguments, thinking_arguments
from neuron.prep.template import ChatTemplate

KEPT = Path(__file__).parents[1] / "templates"
MORE = os.environ.get("HELEXA_TEMPLATES")

FAMILIES = {
    "ByteDance-Seed-OSS": "seed-think+seed-xml",
    "GLM-4.6": "think+glm",
    "HuggingFaceTB-SmolLM3-3B": "think+hermes",
    "MiniMax-M2": "think+minimax",
    "Qwen-Qwen2.5-7B-Instruct": "+hermes",
    "Qwen-Qwen3-0.6B": "think+hermes",
    "Qwen3-Coder": "+qwen-xml",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "think+hermes",  # neither this nor the next one announces tools
    "deepseek-ai-DeepSeek-V3.1": "think+hermes",
    "deepseek-ai-DeepSeek-V3.2": "think+dsml",
    "deepseek-ai-DeepSeek-V4": "think+dsml-tools",
    "google-gemma-4-31B-it": "gemma-thought+gemma",
    "ibm-granite-granite-3.3-2B-Instruct": "think+granite",
    "ibm-granite-granite-4.0": "+hermes",
    "meetkai-functionary-medium-v3.1": "+function-tag",
    "meetkai-functionary-medium-v3.2": "+functionary",
    "microsoft-Phi-3.5-mini-instruct": "+hermes",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-think+mistral-args",
    "mistralai-Mistral-Nemo-Instruct-2407": "+mistral",
    "openai-gpt-oss-120b": "+harmony",
}
"""Those that are kept, and what their models' answers are written in."""
MOVES_SYSTEM = {"mistralai-Mistral-Nemo-Instruct-2407"}
"""Their templates put it before what the user said last."""
UNREAD = {
    "Apertus-8B-Instruct", "GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "Kimi-K3", "MiniMax-M3", "muse-glimmer",
    "openbmb-MiniCPM5-1B", "tencent-Hy3", "upstage-Solar-Open-100B",
}  # fmt: skip
"""Of llama.cpp's folder: nothing here reads the calls of their models, which stay text (docs/api.md)."""
ALL = sorted([*KEPT.glob("*.jinja"), *(p for p in Path(MORE or KEPT).glob("*.jinja") if p.stem not in FAMILIES)])

SYSTEM, QUESTION, ANSWER, LAST = "You like needles.", "How is the weather there?", "Fine, I think.", "And now?"
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": f"About {name}.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Where."}}, "required": ["city"]}}}
    for name in ("weather", "clock")
]  # fmt: skip
CALLS = [Call("weather", '{"city": "Zürich"}'), Call("clock", '{"city": "Oslo"}')]


def read(path: Path) -> ChatTemplate:
    return ChatTemplate(path.read_text(encoding="utf-8"), bos="<s>", eos="</s>")


def turn(*calls: Call, **more: Any) -> list[dict[str, Any]]:
    """Return a message with calls, and their results."""
    made: list[dict[str, Any]] = [
        {"id": f"call0000{n}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for n, c in enumerate(calls)
    ]
    asked: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": made, **more}
    results = [{"role": "tool", "tool_call_id": c["id"], "name": c["function"]["name"], "content": f"result{n}"}
               for n, c in enumerate(made)]  # fmt: skip
    return [asked, *results]


USER = {"role": "user", "content": QUESTION}
TALK = [{"role": "system", "content": SYSTEM}, USER, {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": LAST}]  # fmt: skip


def test_every_kept_template_is_listed() -> None:
    assert {p.stem for p in KEPT.glob("*.jinja")} == set(FAMILIES)
    assert len(ALL) > len(FAMILIES) or MORE is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_says_how_its_model_writes(name: str) -> None:
    assert read(KEPT / f"{name}.jinja").family.name == FAMILIES[name]


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.stem))
def test_what_was_said_is_shown(path: Path) -> None:
    prompt = read(path).render(TALK, {}, [])
    places = [prompt.find(text) for text in (SYSTEM, QUESTION, ANSWER, LAST)]
    assert -1 not in places, prompt
    assert places == sorted(places) or path.stem in MOVES_SYSTEM
    assert "needle_in" not in prompt


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.stem))
@pytest.mark.parametrize("count", [1, 2])
def test_tools_calls_and_results_are_shown(path: Path, count: int) -> None:
    messages = [TALK[0], USER, *turn(*CALLS[:count], reasoning_content="Let me look.")]
    prompt = read(path).render(messages, {}, TOOLS)
    assert SYSTEM in prompt
    assert prompt.count("About weather.") == prompt.count("About clock.") > 0
    for call, result in zip(CALLS[:count], ("result0", "result1"), strict=False):
        city = json.loads(call.arguments)["city"]
        assert city in prompt or json.dumps(city)[1:-1] in prompt, prompt
        assert result in prompt, prompt
        assert f"'city': '{city}'" not in prompt, "an object that was put into text as it is"


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.stem))
def test_calls_are_read_as_the_template_shows_them(path: Path) -> None:
    template = read(path)
    before = [TALK[0], USER]
    shown = template.render([*before, *turn(CALLS[0])], {}, TOOLS)
    silent = template.render([*before, {"role": "assistant", "content": "!"}, TALK[-1]], {}, TOOLS)
    # The call stands where the two begin to differ; its opener may be what they still share, as "<".
    at = next(i for i, (a, b) in enumerate(zip(shown, silent, strict=False)) if a != b)
    openers = [o for o in template.family.syntax.openers if len(o) > 1]
    begun = [shown.rfind(o, max(0, at - len(o)), at + len(o)) for o in openers]
    at = max((b for b in begun if b >= 0), default=at)
    parser = template.family.parser({t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}, is_open=False)
    assert parser is not None
    found = [*parser.push(shown[at:]), *parser.finish()]
    calls = [
        Call(d.name, json.dumps(json.loads(d.arguments), ensure_ascii=False)) for d in found if isinstance(d, Call)
    ]
    assert (calls[:1] == CALLS[:1]) == (path.stem not in UNREAD), shown[at - 20 :]


THINKING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen-Qwen3-0.6B": (thinking_arguments(is_on=False), thinking_arguments(is_on=True)),
    "HuggingFaceTB-SmolLM3-3B": (thinking_arguments(is_on=False), thinking_arguments(is_on=True)),
    "GLM-4.6": (thinking_arguments(is_on=False), thinking_arguments(is_on=True)),
    "deepseek-ai-DeepSeek-V3.1": (thinking_arguments(is_on=False), thinking_arguments(is_on=True)),
    "deepseek-ai-DeepSeek-V3.2": (effort_arguments("none"), effort_arguments("high")),
    "google-gemma-4-31B-it": (effort_arguments("none"), effort_arguments("high")),
    "ibm-granite-granite-3.3-2B-Instruct": (thinking_arguments(is_on=False), thinking_arguments(is_on=True)),
    "openai-gpt-oss-120b": (effort_arguments("low"), effort_arguments("high")),
}


@pytest.mark.parametrize("name", THINKING)
def test_thinking_and_effort_reach_the_template(name: str) -> None:
    template = read(KEPT / f"{name}.jinja")
    off, on = (template.render([USER], arguments, []) for arguments in THINKING[name])
    assert off != on


def test_a_template_that_wants_more_is_refused_with_its_own_words() -> None:
    template = read(KEPT / "mistralai-Mistral-Nemo-Instruct-2407.jinja")
    wrong = [{"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]
    with pytest.raises(Exception, match="9") as caught:
        template.render([USER, {"role": "assistant", "content": "", "tool_calls": wrong}], {}, TOOLS)
    assert getattr(caught.value, "param", None) == "tools"
