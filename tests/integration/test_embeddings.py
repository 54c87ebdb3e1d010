"""Vectors and scores: real models, tiny ones with random weights, over HTTP with the official client."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx
import openai
import pytest

from tests.support.harness import DEMO_SOURCE, Gateway, Neuron
from tests.support.tiny_embedders import CONTEXT, WIDTH, write_embedder

TEXTS = ["the cat sat .", "the dog ran", "sea is blue, sea is red", "a"]
TALKER = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    base = tmp_path_factory.mktemp("fleet")
    vectors: Path = write_embedder(base)
    scores: Path = write_embedder(base, pooling=gguf.PoolingType.RANK)
    models: list[dict[str, Any]] = [
        {"id": "vectors", "source": f"file:{vectors}"},
        {"id": "scores", "source": f"file:{scores}"},
        {"id": TALKER, "source": DEMO_SOURCE, "context": 512, "kv_tokens": 512, "parallel": 1},
    ]
    with (
        Neuron(base / "n", models=models, preload=["vectors"]) as neuron,
        Gateway(base / "g", neurons=[neuron]) as gateway,
    ):
        neuron.wait_for(lambda s: any(m["status"] == "loaded" for m in s["state"]["models"]), timeout_s=60)
        yield gateway


@pytest.fixture
def client(fleet: Gateway) -> Iterator[openai.OpenAI]:
    with fleet.openai() as opened:
        yield opened


@pytest.fixture
def http(fleet: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, timeout=60) as opened:
        yield opened


def test_vectors_have_length_one_and_come_in_order(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    assert [d.index for d in reply.data] == [0, 1, 2, 3]
    for entry in reply.data:
        assert len(entry.embedding) == WIDTH
        assert sum(x * x for x in entry.embedding) == pytest.approx(1, abs=1e-5)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > sum(len(t.split()) for t in TEXTS)


def test_a_text_has_the_same_vector_alone_and_packed_with_others(client: openai.OpenAI) -> None:
    many = client.embeddings.create(model="vectors", input=TEXTS * 40, encoding_format="float").data
    assert len(many) == 160
    for number, text in enumerate(TEXTS):
        (alone,) = client.embeddings.create(model="vectors", input=text, encoding_format="float").data
        assert many[number].embedding == pytest.approx(alone.embedding, abs=2e-3)  # half precision inside
        assert many[156 + number].embedding == pytest.approx(alone.embedding, abs=2e-3)  # half precision inside
    assert many[0].embedding != pytest.approx(many[1].embedding, abs=1e-2)


def test_base64_is_the_same_floats(client: openai.OpenAI, http: httpx.Client) -> None:
    body = {"model": "vectors", "input": "the cat", "encoding_format": "base64"}
    reply = http.post("/v1/embeddings", json=body).json()
    packed = struct.unpack(f"<{WIDTH}f", base64.b64decode(reply["data"][0]["embedding"]))
    (plain,) = client.embeddings.create(model="vectors", input="the cat", encoding_format="float").data
    assert packed == pytest.approx(plain.embedding, abs=1e-6)
    (default,) = client.embeddings.create(model="vectors", input="the cat").data  # the client asks for base64 itself
    assert default.embedding == pytest.approx(plain.embedding, abs=1e-6)


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI) -> None:
    text = client.embeddings.create(model="vectors", input="the cat", encoding_format="float")
    ids = client.embeddings.create(model="vectors", input=[2, 5, 6, 3], encoding_format="float")
    assert ids.data[0].embedding == pytest.approx(text.data[0].embedding, abs=1e-5)
    assert ids.usage.prompt_tokens == text.usage.prompt_tokens == 4


def test_documents_are_ranked_by_their_scores(http: httpx.Client) -> None:
    body: dict[str, Any] = {"model": "scores", "query": "the cat", "documents": [*TEXTS[:3], {"text": TEXTS[3]}]}
    reply = http.post("/v1/rerank", json=body).json()
    scores = [r["relevance_score"] for r in reply["results"]]
    assert sorted(r["index"] for r in reply["results"]) == [0, 1, 2, 3]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert reply["usage"]["total_tokens"] > 0
    top = http.post("/v1/rerank", json={**body, "top_n": 2, "return_documents": True}).json()["results"]
    assert [r["index"] for r in top] == [r["index"] for r in reply["results"][:2]]
    assert top[0]["document"]["text"] == TEXTS[top[0]["index"]]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": "vectors", "input": ""}, "input[0]"),
        ("/v1/embeddings", {"model": "vectors", "input": []}, "input"),
        ("/v1/embeddings", {"model": "vectors", "input": ["a", 3]}, "input"),
        ("/v1/embeddings", {"model": "vectors", "input": [[99999]]}, "input[0]"),
        ("/v1/embeddings", {"model": "vectors", "input": ["a", "cat " * CONTEXT]}, "input[1]"),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 100_000}, "dimensions"),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"model": "scores", "input": "a"}, "model"),
        ("/v1/embeddings", {"model": TALKER, "input": "a"}, "model"),
        ("/v1/rerank", {"model": "vectors", "query": "a", "documents": ["a"]}, "model"),
        ("/v1/rerank", {"model": "scores", "query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"model": "scores", "query": "a", "documents": [{"x": 1}]}, "documents[0]"),
        ("/v1/completions", {"model": "vectors", "prompt": "a"}, "model"),
    ],
)
def test_what_cannot_be_computed_is_a_400_by_name(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
