"""What a client sends is what the model reads: each endpoint's requests, through prep's own rendering."""

from typing import Any

import orjson
import pytest

from common.messages import Chat, Embed, Infill, Rerank, Text, TokenIds
from cortex.dialects.anthropic_count import AnthropicCount
from cortex.dialects.anthropic_messages import AnthropicMessages
from cortex.dialects.embeddings import Embeddings
from cortex.dialects.llama_infill import LlamaInfill
from cortex.dialects.llama_server import ApplyTemplate, Tokenize
from cortex.dialects.openai_chat import OpenAIChat
from cortex.dialects.openai_completions import OpenAICompletions
from cortex.dialects.openai_responses import OpenAIInputTokens, OpenAIResponses
from cortex.dialects.rerank import Reranking
from neuron.prep.template import CHATML, ChatTemplate

SYSTEM = "  You say cch=a1b2c; and\tno more.\n\n"
USER = " Grüße,\r\n two  spaces, <b>&amp;</b> {{ 1 + 1 }} 🙂 "
ANSWER = "Well…\n"
LAST = "\nand? "

TURNS: dict[str, list[dict[str, Any]]] = {
    "text": [
        {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": LAST},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": USER[:9]}, {"type": "text", "text": USER[9:]}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        {"role": "user", "content": LAST},
    ],
}  # fmt: skip


def chat(turns: str, system: str | None) -> dict[str, Any]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*head, *TURNS[turns]]}


def anthropic(turns: str, system: str | None) -> dict[str, Any]:
    given = {} if system is None else {"system": [{"type": "text", "text": system}] if turns == "parts" else system}
    return {"messages": TURNS[turns], "max_tokens": 5, **given}


def responses(turns: str, system: str | None) -> dict[str, Any]:
    def part(role: str, given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "type": "output_text" if role == "assistant" else "input_text"}

    items = [
        {**m, "content": [part(m["role"], p) for p in m["content"]] if isinstance(m["content"], list) else m["content"]}
        for m in TURNS[turns]
    ]
    return {"input": items, **({} if system is None else {"instructions": system})}


CHATS: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (OpenAIChat(), chat),
    "/v1/responses": (OpenAIResponses(), responses),
    "/v1/responses/input_tokens": (OpenAIInputTokens(), responses),
    "/v1/messages": (AnthropicMessages(), anthropic),
    "/v1/messages/count_tokens": (AnthropicCount(AnthropicMessages()), anthropic),
    "/apply-template": (ApplyTemplate(), chat),
}


def given_to(endpoint: Any, body: dict[str, Any]) -> Any:
    """Return what an endpoint makes of a request for the neuron."""
    read = endpoint.read(orjson.dumps({"model": "m", **body}))
    if hasattr(read, "input"):
        return read.input
    (given,) = read.generation.inputs
    return given


def check(path: str, turns: str, system: str | None, template: str) -> None:
    """Hold the prompt of an endpoint to what was sent, byte for byte."""
    endpoint, write = CHATS[path]
    given = given_to(endpoint, write(turns, system))
    assert isinstance(given, Chat)
    prompt = ChatTemplate(template, bos="", eos="").render(given.messages, given.template_kwargs, given.tools)
    said = [*([] if system is None else [("system", system)]), ("user", USER), ("assistant", ANSWER), ("user", LAST)]
    assert prompt == "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in said) + "<|im_start|>assistant\n"


@pytest.mark.parametrize("system", [SYSTEM, None])
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("path", CHATS)
def test_a_conversation_reaches_the_model_as_it_was_sent(path: str, turns: str, system: str | None) -> None:
    check(path, turns, system, CHATML)


@pytest.mark.parametrize("path", CHATS)
def test_the_check_fails_where_something_is_trimmed_or_added(path: str) -> None:
    trimming = CHATML.replace("message['content']", "message['content'] | trim")
    adding = "{% if messages[0]['role'] != 'system' %}You are kind.{% endif %}" + CHATML
    for template, system in ((trimming, SYSTEM), (trimming, None), (adding, None)):
        with pytest.raises(AssertionError):
            check(path, "text", system, template)


def test_only_the_stamp_of_the_billing_line_is_not_what_was_sent() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1; cch=a1b2c;"
    blocks = [{"type": "text", "text": line}, {"type": "text", "text": SYSTEM}]
    body = {**anthropic("text", None), "system": blocks}

    def system(**settings: Any) -> str:
        given = given_to(AnthropicMessages(**settings), body)
        return "".join(part["text"] for part in given.messages[0]["content"])

    assert system(normalizes_stamp=False) == line + SYSTEM
    assert system() == line.replace("a1b2c", "00000") + SYSTEM


def test_texts_reach_the_model_as_they_were_sent() -> None:
    assert given_to(OpenAICompletions(), {"prompt": USER}) == Text(text=USER)
    assert given_to(OpenAICompletions(), {"prompt": [3, 1]}) == TokenIds(ids=[3, 1])
    infill = given_to(LlamaInfill(), {"input_prefix": USER, "input_suffix": LAST, "prompt": ANSWER})
    assert infill == Infill(prefix=USER, suffix=LAST, prompt=ANSWER, field="input_suffix")
    assert given_to(Tokenize(), {"content": USER}) == Text(text=USER, add_special=False)
    assert given_to(Embeddings(), {"input": [USER, ""]}) == Embed(inputs=[Text(text=USER), Text(text="")])
    assert given_to(Reranking(), {"query": USER, "documents": [{"text": LAST}, ANSWER]}) == Rerank(
        query=USER, documents=[LAST, ANSWER]
    )


def test_results_of_tools_and_thoughts_reach_the_model_as_they_were_sent() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content or '' }}|{{ m.content }}|"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}\n"
        "{% endfor %}{{ tools | tojson if tools else '' }}"
    )
    arguments = '{"q": "é  "}'
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    bodies: list[tuple[Any, dict[str, Any]]] = [
        (OpenAIChat(), {"messages": [
            {"role": "user", "content": USER},
            {"role": "assistant", "content": None, "reasoning_content": " hm\n", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": LAST}]}),
        (AnthropicMessages(), {"max_tokens": 5, "messages": [
            {"role": "user", "content": USER},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": " hm\n", "signature": "s"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"q": "é  "}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": LAST}]}]}),
        (OpenAIResponses(), {"input": [
            {"role": "user", "content": USER},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": " hm\n"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments},
            {"type": "function_call_output", "call_id": "c1", "output": LAST}]}),
    ]  # fmt: skip
    for endpoint, body in bodies:
        given = given_to(endpoint, body)
        prompt = ChatTemplate(template, bos="", eos="").render(given.messages, given.template_kwargs, given.tools)
        assert USER in prompt
        assert "assistant: hm\n||" in prompt
        assert f"tool:|{LAST}|" in prompt
        assert "é  " in prompt.replace("\\u00e9", "é")
