"""What both daemons log of a request: one closing line on the gateway, its id throughout, and nothing it says."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron
from tests.support.streams import Stream, chat

SECRET = "the launch is on tuesday"
ANSWER = "nobody shall know"
TIMES = ("seconds", "ttft_ms", "queue_ms", "prompt_ms", "predicted_ms")
PATIENCE_S = 20.0


class Stack:
    """A neuron and a gateway that log all they ever do, as JSON."""

    def __init__(self, gateway: Gateway, neuron: Neuron) -> None:
        self.gateway = gateway
        self.neuron = neuron
        self.url = f"{gateway.url}/v1/chat/completions"

    def closing(self, request_id: str) -> dict[str, Any]:
        """Return the one closing line of a request, waiting for it."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [line for line in lines(self.gateway.log) if is_closing(line, request_id)]):
            assert time.monotonic() < deadline, self.gateway.log
            time.sleep(0.02)
        (line,) = found
        return line


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def is_closing(line: dict[str, Any], request_id: str) -> bool:
    return line.get("request_id") == request_id and line["message"].startswith("POST ")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    source = f"file:{write_model(folder / 'm.json', token_s=0.01, text=ANSWER * 400)}"
    log: dict[str, Any] = {"log": {"level": "debug", "format": "json"}}
    models = [{"id": "m", "source": source, "vram_mb": 200, "context": 2000}]
    with (
        Neuron(folder / "n", models=models, engine="tests.support.fake_engine", **log) as neuron,
        Gateway(folder / "c", neurons=[neuron], sections=log) as gateway,
    ):
        yield Stack(gateway, neuron)


def test_a_served_request_ends_with_a_line_that_says_all_of_it(stack: Stack) -> None:
    body = chat("m", SECRET, max_tokens=20, stream=False)
    reply = httpx.post(stack.url, json=body, headers={"x-request-id": "good-1"}, timeout=PATIENCE_S).raise_for_status()
    line = stack.closing("good-1")
    usage = reply.json()["usage"]
    expected = {
        "message": "POST /v1/chat/completions", "level": "info", "status": 200, "outcome": "ok", "model": "m",
        "node": "beast", "dialect": "openai_chat", "principal": "127.0.0.1", "cold": True,
        "prompt_tokens": usage["prompt_tokens"], "tokens": usage["completion_tokens"],
    }  # fmt: skip
    assert {k: line.get(k) for k in expected} == expected
    assert all(line[name] >= 0 for name in TIMES)
    httpx.post(stack.url, json=body, headers={"x-request-id": "good-2"}, timeout=PATIENCE_S).raise_for_status()
    again = stack.closing("good-2")
    assert again["cached"] > 0
    assert "cold" not in again


def test_a_client_that_goes_and_a_request_that_is_refused_have_their_line_too(stack: Stack) -> None:
    stream = Stream(stack.url, chat("m", SECRET, max_tokens=1500), headers={"x-request-id": "gone-1"})
    assert stream.started.wait(PATIENCE_S)
    stream.stop()
    line = stack.closing("gone-1")
    assert (line["outcome"], line["model"], line["node"]) == ("client gone", "m", "beast")
    assert 0 < line["tokens"] < 1500
    body = chat("absent", SECRET, stream=False)
    httpx.post(stack.url, json=body, headers={"x-request-id": "bad-1"}, timeout=PATIENCE_S)
    line = stack.closing("bad-1")
    assert (line["status"], line["outcome"], line["model"]) == (404, "model_not_found", "absent")
    assert "node" not in line


def test_a_request_is_found_by_its_id_on_its_neuron(stack: Stack) -> None:
    stream = Stream(stack.url, chat("m", SECRET, max_tokens=1500), headers={"x-request-id": "cancelled-1"})
    assert stream.started.wait(PATIENCE_S)
    assert stack.neuron.ctl("requests", "cancel", "cancelled-1").returncode == 0
    assert stream.finish(PATIENCE_S).error is not None
    assert stack.closing("cancelled-1")["outcome"] == "aborted"
    (line,) = [line for line in lines(stack.neuron.log) if line["message"] == "request cancelled"]
    assert (line["request_id"], line["why"]) == ("cancelled-1", "an admin")


def test_no_log_has_a_word_of_prompt_or_answer_even_at_its_lowest_level(stack: Stack) -> None:
    stream = Stream(stack.url, chat("m", SECRET, max_tokens=20), headers={"x-request-id": "quiet-1"})
    assert ANSWER[:6] in stream.finish(PATIENCE_S).text
    stack.closing("quiet-1")
    for daemon in (stack.gateway, stack.neuron):
        assert daemon.log.count("{") > 3
        assert SECRET not in daemon.log
        assert ANSWER[:12] not in daemon.log
