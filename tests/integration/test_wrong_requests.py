"""Requests that nobody should send: by the API's own description, and good ones that were mutated."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron
from tests.support.mutations import mutate

IS_LONG = bool(os.environ.get("HELEXA_LONG"))
THREADS = 4
TOOL = {"name": "f", "description": "d"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
ASK = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {
        "messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c", "content": "r"}],
        "tools": [{"type": "function", "function": {**TOOL, "parameters": SCHEMA}}], "tool_choice": "auto",
        "temperature": 0.5, "stop": ["x"], "logit_bias": {"1": 2}, "stream": True}),
    ("/v1/chat/completions", {
        "messages": ASK, "n": 2, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "echo": True, "logprobs": 1, "stream": False}),
    ("/v1/responses", {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                  {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                  {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "r"}],
        "instructions": "I", "tools": [{"type": "function", **TOOL, "parameters": SCHEMA}], "stream": True,
        "tool_choice": "auto", "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}}}),
    ("/v1/responses/input_tokens", {"input": "hi", "instructions": "I"}),
    ("/v1/messages", {
        "max_tokens": 3, "system": [{"type": "text", "text": "S"}], "tools": [{**TOOL, "input_schema": SCHEMA}],
        "messages": [{"role": "user", "content": "hi"},
                     {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                                       {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]}],
        "tool_choice": {"type": "auto"}, "thinking": {"type": "adaptive"}, "stop_sequences": ["x"], "stream": True}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}], "system": "S"}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("/v1/rerank", {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "x", "text": "y"}],
                 "prompt": "c", "n_predict": 3, "stream": True}),
    ("/tokenize", {"content": "a b", "add_special": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/apply-template", {"messages": ASK}),
]  # fmt: skip
REFUSED = {"/v1/embeddings", "/v1/rerank"}
"""Of a model that generates."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("wrong")
    source = f"file:{write_model(base / 'm.json', length=3)}"
    model = {"id": "m", "source": source, "context": 256, "kv_tokens": 4096, "parallel": 16}
    with (
        Neuron(base / "n", models=[model], engine="tests.support.fake_engine", preload=["m"]) as neuron,
        Gateway(base / "g", neurons=[neuron]) as gateway,
    ):
        yield gateway


def check_envelope(path: str, status: int, text: str) -> None:
    """Hold a refusal to its dialect."""
    error = json.loads(text)
    if path.startswith("/v1/messages"):
        assert set(error) == {"type", "error", "request_id"}, text
        assert set(error["error"]) == {"type", "message"}, text
    else:
        assert set(error) == {"error"}, text
        assert set(error["error"]) == {"message", "type", "code", "param"}, text
    assert error["error"]["message"], text


def send(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, str]:
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode()


def fuzz(gateway: Gateway, seed: int, count: int) -> dict[int, int]:
    """Send so many mutated bodies over one connection; return how many of each status came."""
    random = Random(seed)
    seen: dict[int, int] = {}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)) as connection:
        for number in range(count):
            path, body = random.choice(GOOD)
            data = mutate({"model": "m", **body}, random)
            status, text = send(connection, path, data)
            assert 200 <= status < 300 or 400 <= status < 500, (path, data[:2000], text)
            if status >= 400:
                check_envelope(path, status, text)
            assert "internal_error" not in text, (path, data[:2000])
            seen[status] = seen.get(status, 0) + 1
            if number % 100 == 99:
                path, body = GOOD[number // 100 % len(GOOD)]
                status, text = send(connection, path, json.dumps({"model": "m", **body}).encode())
                assert status == (400 if path in REFUSED else 200), (path, text)
    return seen


def test_the_good_requests_are_good(gateway: Gateway) -> None:
    for path, body in GOOD:
        answer = httpx.post(f"{gateway.url}{path}", json={"model": "m", **body}, timeout=30)
        assert answer.status_code == (400 if path in REFUSED else 200), (path, answer.text)


@pytest.mark.timeout(1200 if IS_LONG else 120)
def test_mutated_requests_are_answered_or_refused_and_the_next_good_one_is_served(gateway: Gateway) -> None:
    each = (20_000 if IS_LONG else 2_000) // THREADS
    with ThreadPoolExecutor(THREADS) as pool:
        seen = [
            done for run in [pool.submit(fuzz, gateway, s, each) for s in range(THREADS)] for done in [run.result()]
        ]
    total = {status: sum(s.get(status, 0) for s in seen) for status in sorted({k for s in seen for k in s})}
    assert total[200] > each // 4, total
    assert total[400] > each // 4, total


@pytest.mark.timeout(1200 if IS_LONG else 120)
def test_requests_made_from_the_description_are_answered_as_it_says(gateway: Gateway, tmp_path: Path) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": ["m"]}  # so that valid ones come as far as the engine
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", gateway.url, "--seed", "1",
        "--checks", f"{checks},negative_data_rejection", "--no-color", "--no-shrink", "--generation-database", "none",
        "--phases", "coverage,fuzzing" if IS_LONG else "fuzzing", "--max-examples", "200" if IS_LONG else "12",
        "--continue-on-failure", "--request-timeout", "30", "--warnings", "off",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert f"Tested: {sum(len(p) for p in document['paths'].values())}" in run.stdout
