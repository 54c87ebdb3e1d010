"""A worker that is killed inside of something: the client gets, byte for byte, what nobody disturbed would have got."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.fake_engine import write_model
from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.streams import Stream, chat

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln 日本"}}</tool_call>'
CUTS = [10, 21, 30, 50, 90]
"""In the answer of `agentic`: before which tokens the worker is killed."""
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "maximum": 200}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CASES: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    # The text, one token a byte; before which tokens the worker is killed; what is asked for.
    "character": ("Grüße 日本 👩‍👩‍👧 end", [3, 9, 17, 22], {}),
    "stop-half": ("one two STOP three", [9, 10], {"stop": ["two STOP"]}),
    "no-stop": ("one two STAR three", [10, 11], {"stop": ["two STOP"]}),
    "thinking": ("<think>deep thöught</think>the answer", [3, 12, 14, 21, 30], {}),
    "tool-call": (f"Let me see. {CALL}", [4, 15, 40, len(CALL)], {"tools": [WEATHER]}),
    "thought-call": (f"<think>hm</think>{CALL}", [9, 19, 60], {"tools": [WEATHER]}),
    "json": ('{"name": "Zoë", "age": 3}', [5, 13, 20], {"response_format": {"type": "json_object"}}),
    "twins": ("both of us", [3], {"n": 2}),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One model a case, and each a second time under a name where nobody is killed."""
    folder = tmp_path_factory.mktemp("inside")
    models = []
    for name, (text, cuts, _) in CASES.items():
        for which, killed in ((name, cuts), (f"{name}-calm", [])):
            path = write_model(folder / f"{which}.json", text=text, markers="<think></think><tool_call>",
                               killed_once_at=killed, token_s=0.001, memory_mb=10)  # fmt: skip
            models.append({"id": which, "source": f"file:{path}", "vram_mb": 10})
    with (
        Neuron(folder / "n", devices=[{"kind": "cpu", "memory_mb": 1024, "threads": 1}], models=models,
               engine="tests.support.fake_engine", restart={"backoff_s": 0.01}) as neuron,
        Gateway(folder / "g", neurons=[neuron]) as started,
    ):  # fmt: skip
        yield started
        assert neuron.status()["jobs"] == []


def openai_answer(events: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Put the deltas of each choice together."""
    choices: dict[int, dict[str, Any]] = {}
    for _, event in events:
        assert "error" not in event, event
        for part in event["choices"]:
            whole = choices.setdefault(part["index"], {"text": "", "thought": "", "calls": {}, "reason": None})
            delta = part["delta"]
            whole["text"] += delta.get("content") or ""
            whole["thought"] += delta.get("reasoning_content") or delta.get("reasoning") or ""
            whole["reason"] = part.get("finish_reason") or whole["reason"]
            for call in delta.get("tool_calls") or []:
                known = whole["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                for key in known:
                    known[key] += call["function"].get(key) or ""
    return [choices[i] for i in sorted(choices)]


@pytest.mark.parametrize("case", CASES)
def test_a_stream_of_chat_goes_on_inside_of(gateway: Gateway, case: str) -> None:
    _, cuts, options = CASES[case]
    url = f"{gateway.url}/v1/chat/completions"
    calm = Stream(url, chat(f"{case}-calm", "go", **options)).finish(30)
    disturbed = Stream(url, chat(case, "go", **options)).finish(60)
    assert disturbed.done
    assert len(list(gateway.folder.parent.glob(f"{case}.json.killed-at-*"))) == len(cuts), (
        "each cut has killed a worker"
    )
    assert openai_answer(disturbed.events) == openai_answer(calm.events)
    assert openai_answer(calm.events)[0]["reason"] in ("stop", "tool_calls")


def anthropic_blocks(gateway: Gateway, model: str) -> list[dict[str, Any]]:
    """Return the blocks of a streamed message, put together; asserts that their indexes are as they must be."""
    body = {"model": model, "max_tokens": 500, "stream": True, "messages": [{"role": "user", "content": "go"}],
            "tools": [{"name": "weather", "input_schema": WEATHER["function"]["parameters"]}]}  # type: ignore[index]  # fmt: skip
    blocks: list[dict[str, Any]] = []
    is_open = False
    with httpx.stream("POST", f"{gateway.url}/v1/messages", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line[6:])
            assert event["type"] != "error", event
            if event["type"] == "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                is_open = True
                blocks.append({"type": event["content_block"]["type"], "body": ""})
            elif event["type"] == "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                blocks[-1]["body"] += delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            elif event["type"] == "content_block_stop":
                is_open = False
    return blocks


def responses_events(gateway: Gateway, model: str) -> list[dict[str, Any]]:
    """Return the events of a streamed response without what is random; asserts that they count on and keep one id."""
    body = {"model": model, "stream": True, "input": "go",
            "tools": [{"type": "function", **WEATHER["function"]}]}  # type: ignore[dict-item]  # fmt: skip
    events: list[dict[str, Any]] = []
    with httpx.stream("POST", f"{gateway.url}/v1/responses", json=body, timeout=60) as response:
        assert response.status_code == 200
        events += [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert len({e["response"]["id"] for e in events if "response" in e}) == 1
    items: dict[int, str] = {}
    for event in events:
        if "item_id" in event or "item" in event:
            item_id = event.get("item_id") or event["item"]["id"]
            assert items.setdefault(event["output_index"], item_id) == item_id
    assert len(set(items.values())) == len(items) == 3
    final = events[-1]["response"]
    assert [(o["id"], i) for i, o in enumerate(final["output"])] == [(items[i], i) for i in sorted(items)]
    return events


def folded(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the events with deltas put together, which come in other pieces each time, and without ids and times."""
    out: list[tuple[Any, ...]] = []
    for event in events:
        head = (event["type"], event.get("output_index"), event.get("content_index"))
        if "delta" in event:
            text = event["delta"]
            if out and out[-1][:3] == head:
                text = out.pop()[3] + text
            out.append((*head, text))
        else:
            out.append((*head, event.get("response", {}).get("usage")))
    return out


@pytest.fixture(scope="module")
def agentic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Gateway]]:
    """One answer of a thought, a text and a call; `calm` is not disturbed, the others five times each."""
    folder = tmp_path_factory.mktemp("agentic")
    text = f"<think>hm, where?</think>Let me see. {CALL}"
    paths = {
        name: write_model(folder / f"{name}.json", text=text, markers="<think></think><tool_call>", killed_once_at=cuts)
        for name, cuts in {"calm": [], "cut-a": CUTS, "cut-r": CUTS}.items()
    }
    models = [{"id": name, "source": f"file:{path}", "vram_mb": 100} for name, path in paths.items()]
    with (
        Neuron(folder / "n", models=models, engine="tests.support.fake_engine", restart={"backoff_s": 0.01}) as neuron,
        Gateway(folder / "g", neurons=[neuron]) as gateway,
    ):
        yield neuron, gateway


def test_a_message_keeps_its_blocks_and_their_indexes(agentic: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = agentic
    before = neuron.status()["state"]["devices"][0]["restarts"]
    calm = anthropic_blocks(gateway, "calm")
    assert [b["type"] for b in calm] == ["thinking", "text", "tool_use"]
    assert anthropic_blocks(gateway, "cut-a") == calm
    assert neuron.status()["state"]["devices"][0]["restarts"] == before + len(CUTS)


def test_a_response_counts_its_events_on_and_keeps_its_ids_and_usage(agentic: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = agentic
    before = neuron.status()["state"]["devices"][0]["restarts"]
    calm = folded(responses_events(gateway, "calm"))
    assert [o[0] for o in calm].count("response.output_item.added") == 3
    assert calm[-1][3]["output_tokens"] > 0
    assert folded(responses_events(gateway, "cut-r")) == calm
    assert neuron.status()["state"]["devices"][0]["restarts"] == before + len(CUTS)


def test_the_real_models_json_still_keeps_its_schema(tmp_path: Path) -> None:
    model = {"id": "demo", "source": DEMO_SOURCE, "context": 1024, "kv_tokens": 2048, "parallel": 2}
    with (
        Neuron(tmp_path / "n", models=[model], preload=["demo"]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        body = chat("demo", "Invent a person.", max_tokens=200, temperature=0, response_format=wanted)
        stream = Stream(f"{gateway.url}/v1/chat/completions", body)
        assert stream.started.wait(60)
        pid = neuron.status()["state"]["devices"][0]["worker_pid"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        cut = stream.reading.text
        reading = stream.finish(90)
        assert (reading.done, reading.error) == (True, None)
        assert reading.text.startswith(cut)
        jsonschema.validate(json.loads(reading.text), SCHEMA)
