"""Models on disk that nobody described: listed at once, served when asked for, broken ones with their reason."""

import time
from pathlib import Path

import openai
import pytest

from tests.support.gguf_files import truncate, write_sharded, write_tiny
from tests.support.harness import Gateway, Neuron

LISTED_WITHIN_S = 2.0


@pytest.mark.alone
def test_a_folder_of_models_is_listed_within_two_seconds_and_each_answers(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for name in ("one-Q4_0", "two-Q8_0", "three"):
        write_tiny(folder / f"{name}.gguf")
    write_sharded(folder, "parts")
    write_tiny(folder / "future.gguf", arch="architecture-of-2031")
    truncate(write_tiny(folder / "half.gguf"))
    good = {"one-q4_0", "two-q8_0", "three", "parts"}
    with Neuron(tmp_path / "n", model_dirs=[str(folder)], hub_cache=str(tmp_path / "hub")) as neuron:
        began = time.monotonic()
        status = neuron.wait_for(lambda s: len(s["state"]["models"]) == 6)
        assert time.monotonic() - began < LISTED_WITHIN_S
        assert all(not m["replicas"] for m in status["state"]["models"])
        reasons = {m["id"]: m["reason"] for m in status["state"]["models"]}
        assert "truncated" in reasons["half"]
        with Gateway(tmp_path / "g", neurons=[neuron]) as gateway, gateway.openai() as client:
            assert {m.id for m in client.models.list()} == {*good, "future", "half"}
            for model in sorted(good):
                answer = client.completions.create(model=model, prompt="a", max_tokens=2)
                assert answer.usage is not None
                assert answer.usage.completion_tokens == 2
            for model, words in {"half": "truncated", "future": "needs a newer llama.cpp; this is"}.items():
                with pytest.raises(openai.APIStatusError, match=words):
                    client.completions.create(model=model, prompt="a", max_tokens=2)
            write_tiny(folder / "late.gguf")
            ends_at = time.monotonic() + 10
            while "late" not in {m.id for m in client.models.list()}:
                assert time.monotonic() < ends_at
                time.sleep(0.02)
            assert client.completions.create(model="late", prompt="a", max_tokens=2).choices
