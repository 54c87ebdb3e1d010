"""The whole path with the real model: real gateway processes, real bus, real worker, real clients."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.harness import ADMIN_KEY, DEMO_SOURCE, Gateway, Neuron
from tests.support.streams import Stream, chat

MODEL = "smollm2-135m-instruct"
PROFILE = {
    "id": MODEL, "source": DEMO_SOURCE, "quant": "Q4_1", "vram_mb": 400, "min_devices": 1, "context": 8192,
    "kv_tokens": 16384, "parallel": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neuron, Gateway]]:
    base = tmp_path_factory.mktemp("fleet")
    with (
        Neuron(base / "n", models=[PROFILE], aliases={"default": MODEL}, preload=[MODEL]) as neuron,
        Gateway(base / "g", neurons=[neuron], workers=2) as gateway,
    ):
        neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "loaded", timeout_s=60)
        yield neuron, gateway


@pytest.fixture
def client(fleet: tuple[Neuron, Gateway]) -> Iterator[openai.OpenAI]:
    with fleet[1].openai() as opened:
        yield opened


def test_the_sdk_gets_a_whole_answer_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_completion_tokens=16, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 16


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {
        "model": "default", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 24,
        "temperature": 0,
    }  # fmt: skip
    whole = client.chat.completions.create(**body)
    text, finish, usage = "", None, None
    for chunk in client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # the second was all but known


def test_text_completions_stream_and_not(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    chunks = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def test_a_seed_makes_an_answer_repeatable_and_temperature_zero_is_greedy(client: openai.OpenAI) -> None:
    def ask(**sampling: Any) -> str:
        reply = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=16, **sampling)
        return str(reply.choices[0].text)

    first = ask(seed=5, temperature=1.0)
    for between in ("Once upon a midnight dreary, while I pondered", "Once upon a time"):
        client.completions.create(model=MODEL, prompt=between, max_tokens=24, temperature=1.0)
        assert ask(seed=5, temperature=1.0) == first
    ask(temperature=0)  # what was computed at once differs in its last bits from what is continued
    assert ask(temperature=0) == ask(temperature=0)


def test_stop_strings_that_cross_tokens_are_not_shown(client: openai.OpenAI) -> None:
    full = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0).choices[0].text
    stop = full[7:11]
    cut = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4,", max_tokens=24, temperature=0, stop=[stop]
    ).choices[0]  # fmt: skip
    assert cut.finish_reason == "stop"
    assert cut.text == full[: full.index(stop)]


def test_n_answers_come_with_their_indexes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "A word?"}], n=3, max_tokens=6, seed=1, temperature=1.0
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]


def test_models_are_listed_with_their_aliases(client: openai.OpenAI, fleet: tuple[Neuron, Gateway]) -> None:
    assert {m.id for m in client.models.list()} == {MODEL, "default"}
    assert client.models.retrieve(MODEL).id == MODEL
    entry = httpx.get(f"{fleet[1].url}/v1/models/{MODEL}").json()
    assert entry["status"]["value"] == "loaded"
    assert entry["meta"]["n_ctx"] == 8192


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ({"model": "nope"}, openai.NotFoundError, "nope"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": "hi"}, openai.BadRequestError, "messages"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"max_tokens": -5}, openai.BadRequestError, "max_tokens"),
        ({"max_completion_tokens": 0}, openai.BadRequestError, "max_completion_tokens"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"logit_bias": {"99999999": 1}}, openai.BadRequestError, "logit_bias"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, openai.BadRequestError,
         "maximum context length is 8192 tokens"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format"),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error_that_names_the_field(
    client: openai.OpenAI, body: dict[str, Any], error: type[openai.APIStatusError], words: str
) -> None:
    good: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for is_stream in (False, True):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**{**good, **body, "stream": is_stream})
        assert words in str(caught.value)
        assert caught.value.type == "invalid_request_error"


def test_malformed_json_and_missing_messages_are_400(fleet: tuple[Neuron, Gateway]) -> None:
    url = f"{fleet[1].url}/v1/chat/completions"
    for data, code in (
        (b'{"model": ', "invalid_json"),
        (b'{"model": "default"}', "missing_field"),
        (b"", "invalid_json"),
    ):
        answer = httpx.post(url, content=data)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == code


def test_curl_streams_an_answer(fleet: tuple[Neuron, Gateway]) -> None:
    body = json.dumps(chat("default", "Why is the sky blue?", max_tokens=8, stream=True))
    command = ["curl", "-sN", f"{fleet[1].url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("data: {") >= 8
    assert done.stdout.rstrip().endswith("data: [DONE]")


def test_sixteen_streams_interleave_and_all_finish(fleet: tuple[Neuron, Gateway]) -> None:
    url = f"{fleet[1].url}/v1/chat/completions"
    streams = [Stream(url, chat(MODEL, f"Tell me about the number {i}.", max_tokens=32, seed=i)) for i in range(16)]
    readings = [s.finish() for s in streams]
    assert all(r.done and r.error is None and r.finish_reason in ("stop", "length") for r in readings)
    # Eight slots: the first eight overlap each other, and the second eight wait for them.
    spans = sorted((r.token_times()[0], r.token_times()[-1]) for r in readings)
    assert all(spans[i][0] < min(end for _, end in spans[:8]) for i in range(8))
    assert fleet[0].status()["jobs"] == []


def test_a_client_that_goes_away_frees_its_slot_at_once_in_every_phase(fleet: tuple[Neuron, Gateway]) -> None:
    neuron, gateway = fleet
    url = f"{gateway.url}/v1/chat/completions"

    endless = {"max_tokens": 4000, "logit_bias": {"2": -100, "0": -100}}
    # Streaming, and not streaming (no byte has been sent when the client goes).
    for is_stream in (True, False):
        body = chat(MODEL, "Write a very long story.", stream=is_stream, **endless)
        command = ["curl", "-sN", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            neuron.wait_for(lambda s: any(j["state"] == "running" for j in s["jobs"]))
            process.kill()
        gone_at = time.monotonic()
        neuron.wait_for(lambda s: not s["jobs"])
        assert time.monotonic() - gone_at < 1.0
    # While a long prompt is prefilled.
    body = chat(MODEL, "word " * 6000, **endless)
    with subprocess.Popen([*command[:-1], "@-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(body).encode())
        process.stdin.close()
        neuron.wait_for(lambda s: any(j["state"] == "running" for j in s["jobs"]))
        process.kill()
    gone_at = time.monotonic()
    neuron.wait_for(lambda s: not s["jobs"])
    assert time.monotonic() - gone_at < 1.0
    # While queued behind eight others.
    streams = [Stream(url, chat(MODEL, f"Story {i}", **endless)) for i in range(8)]
    neuron.wait_for(lambda s: sum(j["state"] == "running" for j in s["jobs"]) == 8)
    body = chat(MODEL, "Queued.", **endless)
    with subprocess.Popen([*command[:-1], json.dumps(body)], stdout=subprocess.DEVNULL) as process:
        neuron.wait_for(lambda s: any(j["state"] == "queued" for j in s["jobs"]))
        process.kill()
    neuron.wait_for(lambda s: not any(j["state"] == "queued" for j in s["jobs"]))
    for stream in streams:
        stream.stop()
    neuron.wait_for(lambda s: not s["jobs"])


def test_an_admin_sees_the_fleet_and_nobody_else_does(fleet: tuple[Neuron, Gateway]) -> None:
    url = f"{fleet[1].url}/fleet/status"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
    body = httpx.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}).json()
    assert [(n["name"], n["link"]) for n in body["nodes"]] == [("beast", "up")]
