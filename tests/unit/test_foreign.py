"""Other programs' files become profiles, and nothing they say is lost without a word."""

import pytest

from common.errors import ConfigError
from cortex.cli.foreign import parse_arguments, read_llama_swap, read_modelfile, read_preset

LLAMA_SWAP = """
healthCheckTimeout: 90
macros:
  server: llama-server --port ${PORT} --host 127.0.0.1
  big: "--ctx-size 65536 -np 4"
models:
  "qwen coder":
    cmd: |
      ${server} \\
        # the large one
        -m /models/qwen.gguf ${big} --flash-attn on -ngl 99
    aliases: [gpt-4o, coder]
    ttl: 300
  embedder:
    cmd: llama-server -hf org/embed-GGUF:Q8_0 --embeddings -a embed,gpt-4o
  other:
    cmd: vllm serve org/model
groups: {one: {members: [embedder]}}
"""

PRESET = """
version = 1
; shared by all
[*]
c = 16384
LLAMA_ARG_N_GPU_LAYERS = 99

[mine]
model = /models/mine.gguf
parallel = 2
jinja = true

[ggml-org/gemma-GGUF:Q4_K_M]
c = 0
"""

MODELFILE = '''
# comment
FROM ./weights/model.gguf
PARAMETER num_ctx 4096
PARAMETER temperature 0.7
SYSTEM """
You are FROM nowhere.
"""
'''


def test_a_llama_swap_file_gives_profiles_aliases_and_a_list_of_the_rest() -> None:
    result = read_llama_swap(LLAMA_SWAP)
    assert result.models == [
        {"id": "qwen-coder", "source": "file:/models/qwen.gguf", "parallel": 4, "context": 16384, "kv_tokens": 65536},
        {"id": "embedder", "source": "hf:org/embed-GGUF:Q8_0"},
    ]
    assert result.aliases == {"gpt-4o": "qwen-coder", "coder": "qwen-coder", "embed": "embedder"}
    for note in (
        "qwen-coder: flash-attn on: no key of a profile",
        "qwen-coder: gpu-layers 99: no key of a profile",
        "qwen coder: ttl: no key of a profile",
        "embedder: embeddings: no key of a profile",
        "embedder: alias gpt-4o: is taken by qwen-coder",
        "other: left out: it names no GGUF (model or hf-repo)",
        "groups: no equivalent in a models file",
    ):
        assert note in result.notes
    assert not [n for n in result.notes if "port" in n or "host" in n]


def test_a_preset_file_gives_profiles_with_its_shared_section() -> None:
    result = read_preset(PRESET)
    assert result.models == [
        {"id": "mine", "source": "file:/models/mine.gguf", "parallel": 2, "context": 8192, "kv_tokens": 16384},
        {"id": "ggml-org/gemma-GGUF:Q4_K_M", "source": "hf:ggml-org/gemma-GGUF:Q4_K_M"},
    ]
    assert "mine: jinja: no key of a profile" in result.notes
    assert "mine: gpu-layers 99: no key of a profile" in result.notes


def test_a_modelfile_gives_one_profile() -> None:
    result = read_modelfile(MODELFILE, "tiny")
    assert result.models == [
        {"id": "tiny", "source": "./weights/model.gguf", "context": 4096, "kv_tokens": 4096},
    ]  # fmt: skip
    assert [n.split(":")[1].strip() for n in result.notes] == [
        "PARAMETER temperature 0.7",
        "SYSTEM You are FROM nowhere.",
    ]


def test_a_modelfile_from_a_hub_names_it_and_one_from_a_library_is_left_out() -> None:
    assert read_modelfile("FROM hf.co/org/repo:Q4_0", "m").models == [{"id": "m", "source": "hf:org/repo:Q4_0"}]
    library = read_modelfile("FROM llama3.2", "m")
    assert library.models == []
    assert any("ollama's own library" in n for n in library.notes)


def test_options_are_read_in_every_spelling() -> None:
    words = ["llama-server", "--model=/a.gguf", "-c", "8", "--temp", "-1", "--mlock", "--jinja", "-ngl", "9"]
    assert parse_arguments(words) == [
        ("model", "/a.gguf"), ("ctx-size", "8"), ("temp", "-1"), ("mlock", ""), ("jinja", ""), ("gpu-layers", "9"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (read_llama_swap, "a: [", "expected"),
        (read_llama_swap, "a: 1", "models: is missing"),
        (read_llama_swap, "models: {m: {proxy: x}}", "models.m.cmd: must be text"),
        (read_llama_swap, "models: {m: {cmd: 'a \"b'}}", "models.m.cmd: No closing quotation"),
        (read_preset, "[a\nb", "a"),
        (lambda t: read_modelfile(t, "m"), "PARAMETER num_ctx 5", "FROM: is missing"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_words(read, text: str, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words):
        read(text)
