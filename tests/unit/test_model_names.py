"""What file names and references say."""

from pathlib import Path

import pytest

from neuron.models import shards
from neuron.models.hub_cache import BadReference, cache_folder, choose, parse_reference

SHARDED = [f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
REPOSITORY = [*SHARDED, "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-IQ3_XXS.gguf", "mmproj-m-f16.gguf", "README.md"]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("m.Q5_0.gguf", "Q5_0"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("m-bf16.gguf", "BF16"),
        ("m-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("BF16/m-00001-of-00002.gguf", "BF16"),
        ("Qwen2-7B.gguf", None),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
    ],
)
def test_the_quantisation_is_read_from_the_name(name: str, quant: str | None) -> None:
    assert shards.quant_of(name) == quant


def test_parts_are_one_model_and_missing_ones_are_named() -> None:
    names = ["a-00003-of-00003.gguf", "a-00001-of-00003.gguf", "b.gguf"]
    groups = shards.group(names)
    assert groups == {
        "a-00001-of-00003.gguf": ["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"],
        "b.gguf": ["b.gguf"],
    }
    assert shards.missing_parts("a-00001-of-00003.gguf", groups["a-00001-of-00003.gguf"]) == ["a-00002-of-00003.gguf"]
    assert shards.missing_parts("b.gguf", ["b.gguf"]) == []


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("hf:o/r", ["m-Q4_K_M.gguf"]),
        ("hf:o/r:Q8_0", SHARDED),
        ("hf:o/r:q8_0", SHARDED),
        ("hf:o/r:UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        ("hf:o/r/m-IQ3_XXS.gguf", ["m-IQ3_XXS.gguf"]),
        (f"hf:o/r/{SHARDED[1]}", SHARDED),
    ],
)
def test_a_reference_means_one_model_with_all_its_parts(text: str, files: list[str]) -> None:
    assert choose(parse_reference(text), REPOSITORY) == files


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ("hf:o/r:Q6_K", REPOSITORY, "no such quantisation; name one of: o/r:IQ3_XXS, o/r:Q4_K_M"),
        ("hf:o/r", ["a-Q5_K_M.gguf", "a-Q6_K.gguf"], "name one of: o/r:Q5_K_M, o/r:Q6_K"),
        ("hf:o/r:Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "fits several models"),
        ("hf:o/r", ["model.safetensors"], "no GGUF model"),
        ("hf:o/r/x.gguf", REPOSITORY, "no such file; there are"),
    ],
)
def test_a_reference_that_means_nothing_lists_the_choices(text: str, names: list[str], words: str) -> None:
    with pytest.raises(BadReference, match=words):
        choose(parse_reference(text), names)


@pytest.mark.parametrize(
    "text",
    [
        "o/r", "hf:", "hf:o", "hf:o/..", "hf:o/r/../x.gguf", "hf:o/r/x.bin", "hf:o r/x", "https://evil.example/m.gguf",
        "hf:https://evil.example/o/r", "hf://evil.example/o/r", "hf:evil.example:443/o", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadReference):
        parse_reference(text)


def test_the_cache_is_where_the_library_puts_it() -> None:
    assert cache_folder(Path("/c"), {}) == Path("/c")
    assert cache_folder(None, {"HF_HUB_CACHE": "/h", "HF_HOME": "/x"}) == Path("/h")
    assert cache_folder(None, {"HF_HOME": "/x"}) == Path("/x/hub")
    assert cache_folder(None, {"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
