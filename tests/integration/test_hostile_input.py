"""What strangers write, against the real engine: files, templates, schemas, bodies. Each costs one clear error."""

import gzip
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.gguf_files import write_tiny
from tests.support.harness import Gateway, Neuron

TEMPLATES = {
    "escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not allowed to do that"),
    "endless": ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "longer than"),
    "huge": (
        "{% set ns = namespace(t='x' * 1000000) %}{% for i in range(10) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
        "{{ ns.t }}",  # a gigabyte
        "needs more than",
    ),
    "long": ("{% for i in range(80) %}{{ 'x' * 1000000 }}{% endfor %}", "wrote more than"),
}
"""By model: its template, and what is said of it."""


def absurd(version: int, tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + bytes(2**16)


FILES = {
    "tensors": (absurd(3, 2**40, 0), "claims 1099511627776 tensors"),
    "keys": (absurd(3, 0, 2**62), "claims 0 tensors and"),
    "name": (absurd(3, 0, 1)[:24] + struct.pack("<Q", 2**61), "a name of"),
    "array": (
        absurd(3, 0, 1)[:24] + struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**60) + bytes(2**16),
        "damaged or cut off",
    ),
}
"""By model: its file, and what is said of it."""


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neuron]:
    folder = tmp_path_factory.mktemp("hostile")
    models = []
    for name, (template, _) in {**TEMPLATES, "good": ("{{ messages[0].content }}", "")}.items():
        write_tiny(folder / "files" / f"{name}.gguf", tokenizer__chat_template=template)
        models.append({"id": name, "source": f"{name}.gguf", "context": 256, "kv_tokens": 512, "parallel": 2})
    for name, (content, _) in FILES.items():
        (folder / "files" / f"{name}.gguf").write_bytes(content)
        models.append({"id": name, "source": f"{name}.gguf"})
    with Neuron(folder / "n", models=models, model_dirs=[str(folder / "files")], preload=["good"]) as running:
        yield running


@pytest.fixture(scope="module")
def shared(neuron: Neuron, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), neurons=[neuron]) as running:
        yield running


@pytest.fixture
def gateway(shared: Gateway, neuron: Neuron) -> Iterator[Gateway]:
    """Whatever was sent, the worker is the one that it was, and the next good request is served."""
    assert chat(shared, "good").status_code == 200
    before = neuron.status()["state"]["devices"][0]["worker_pid"]
    yield shared
    assert chat(shared, "good").status_code == 200
    assert neuron.status()["state"]["devices"][0]["worker_pid"] == before
    assert "Traceback" not in neuron.log + shared.log


def chat(gateway: Gateway, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("model", list(TEMPLATES))
def test_a_hostile_template_costs_its_own_request(gateway: Gateway, model: str) -> None:
    answer = chat(gateway, model)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "template_failed"), answer.text
    assert TEMPLATES[model][1] in error_of(answer)["message"]


@pytest.mark.parametrize("model", list(FILES))
def test_a_file_with_absurd_counts_is_refused_before_llama_cpp_sees_it(gateway: Gateway, model: str) -> None:
    answer = chat(gateway, model)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "model_loading_failed"), answer.text
    assert FILES[model][1] in error_of(answer)["message"]


@pytest.mark.parametrize("levels", [300, 10_000])
def test_a_tool_schema_without_a_bottom_is_refused(gateway: Gateway, levels: int) -> None:
    schema = b'{"properties":{"a":' * levels + b"{}" + b"}}" * levels
    body = b'{"model":"good","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":'
    body += b'{"name":"f","parameters":' + schema + b"}}]}"
    for path in ("/v1/chat/completions", "/apply-template"):
        answer = httpx.post(f"{gateway.url}{path}", content=body, timeout=30)
        assert answer.status_code == 400
        assert "nested too deeply" in error_of(answer)["message"]


def test_a_zip_bomb_is_not_unpacked(gateway: Gateway) -> None:
    bomb = gzip.compress(bytes(50 * 2**20))
    began = time.monotonic()
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = httpx.post(f"{gateway.url}/v1/completions", content=bomb, headers={"content-encoding": encoding})
        assert (answer.status_code, error_of(answer)["param"]) == (400, "content-encoding")
    assert time.monotonic() - began < 5


def test_a_prompt_far_beyond_the_context_is_refused_soon(gateway: Gateway) -> None:
    for text in ("w " * 2**23, " " * 2**24):
        began = time.monotonic()
        answer = httpx.post(f"{gateway.url}/v1/completions", json={"model": "good", "prompt": text}, timeout=30)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
        assert time.monotonic() - began < 10
