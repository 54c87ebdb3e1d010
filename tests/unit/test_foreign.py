"""Other programs' files become profiles, and nothing they say is lost without a word."""

import pytest
from msgspec import convert
from msgspec.structs import fields

from common.engine_options import EngineOptions, SamplingDefaults
from common.errors import ConfigError
from cortex.cli import llama_flags
from cortex.cli.foreign import Import, parse_arguments, read_llama_swap, read_modelfile, read_preset

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
n-cpu-moe = 1
cpu-moe = on
LLAMA_ARG_THREADS = 4

[ggml-org/gemma-GGUF:Q4_K_M]
c = 0
fa = off
top-k = 1
"""

MODELFILE = '''
# comment
FROM ./weights/model.gguf
PARAMETER num_ctx 4096
PARAMETER temperature 0.7
PARAMETER num_gpu 20
PARAMETER num_thread 6
PARAMETER mirostat_tau 4.5
PARAMETER stop <end>
SYSTEM """
You are FROM nowhere.
"""
'''


def test_a_llama_swap_file_gives_profiles_aliases_and_a_list_of_the_rest() -> None:
    result = read_llama_swap(LLAMA_SWAP)
    assert result.models == [
        {
            "id": "qwen-coder", "source": "file:/models/qwen.gguf", "ttl_s": 300, "parallel": 4, "context": 16384,
            "kv_tokens": 65536, "engine": {"n_gpu_layers": 99, "flash_attn": "on"},
        },
        {"id": "embedder", "source": "hf:org/embed-GGUF:Q8_0"},
    ]  # fmt: skip
    assert result.aliases == {"gpt-4o": "qwen-coder", "coder": "qwen-coder", "embed": "embedder"}
    for note in (
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
        {
            "id": "mine", "source": "file:/models/mine.gguf", "parallel": 2, "context": 8192, "kv_tokens": 16384,
            "engine": {"n_gpu_layers": 99, "n_cpu_moe": 1, "threads": 4, "cpu_moe": True},
        },
        {
            "id": "ggml-org/gemma-GGUF:Q4_K_M", "source": "hf:ggml-org/gemma-GGUF:Q4_K_M",
            "engine": {"n_gpu_layers": 99, "flash_attn": "off"}, "sampling": {"top_k": 1},
        },
    ]  # fmt: skip
    assert result.notes == ["mine: jinja: no key of a profile"]


def test_a_modelfile_gives_one_profile() -> None:
    result = read_modelfile(MODELFILE, "tiny")
    assert result.models == [
        {
            "id": "tiny", "source": "./weights/model.gguf", "context": 4096, "kv_tokens": 4096,
            "engine": {"n_gpu_layers": 20, "threads": 6}, "sampling": {"temperature": 0.7, "mirostat_tau": 4.5},
        },
    ]  # fmt: skip
    assert [n.split(":")[1].strip() for n in result.notes] == ["PARAMETER stop <end>", "SYSTEM You are FROM nowhere."]


def test_a_modelfile_from_a_hub_names_it_and_one_from_a_library_is_left_out() -> None:
    assert read_modelfile("FROM hf.co/org/repo:Q4_0", "m").models == [{"id": "m", "source": "hf:org/repo:Q4_0"}]
    library = read_modelfile("FROM llama3.2", "m")
    assert library.models == []
    assert any("ollama's own library" in n for n in library.notes)


def test_options_are_read_in_every_spelling() -> None:
    words = ["llama-server", "--model=/a.gguf", "-c", "8", "--temp", "-1", "--mlock", "-ngl", "9"]
    assert parse_arguments(words) == [
        ("model", "/a.gguf"), ("ctx-size", "8"), ("temperature", "-1"), ("mlock", ""), ("gpu-layers", "9"),
    ]  # fmt: skip


def imported(flags: str) -> Import:
    result = Import()
    result.add("m", parse_arguments(["llama-server", "-m", "/a.gguf", *flags.split()]))
    return result


@pytest.mark.parametrize(
    ("flags", "engine"),
    [
        ("-ngl all", {"n_gpu_layers": "all"}),
        ("-ngl -1", {"n_gpu_layers": "auto"}),
        ("-ngl -2", {"n_gpu_layers": "all"}),
        ("--n-gpu-layers 7 -cmoe", {"n_gpu_layers": 7, "cpu_moe": True}),
        ("-ot a=CPU,b=CPU -ot c=CPU", {"override_tensor": ["a=CPU", "b=CPU", "c=CPU"]}),
        ("--override-kv a.b=int:3", {"override_kv": ["a.b=int:3"]}),
        ("-ctk q8_0 -ctv q4_0 -fa", {"cache_type_k": "q8_0", "cache_type_v": "q4_0", "flash_attn": "on"}),
        ("-b 1024 -ub 256 -t 4 -tb 8", {"batch": 1024, "ubatch": 256, "threads": 4, "threads_batch": 8}),
        ("--no-mmap", {"load_mode": "read"}),
        ("-lm mmap+mlock", {"load_mode": "mmap", "mlock": True}),
        ("-lm dio --numa", {"load_mode": "direct_io", "numa": "distribute"}),
        ("--swa-full -sm none -mg 0", {"swa_full": True, "split_mode": "none", "main_gpu": 0}),
        ("--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32768 --yarn-beta-fast 32",
         {"rope_scaling": "yarn", "rope_scale": 4, "yarn_orig_ctx": 32768, "yarn_beta_fast": 32}),
        ("--rope-freq-base 1e6 --yarn-ext-factor -1.0", {"rope_freq_base": 1e6, "yarn_ext_factor": -1.0}),
        ("--chat-template-file /t.jinja", {"chat_template_file": "/t.jinja"}),
    ],
)  # fmt: skip
def test_an_option_of_llama_server_s_becomes_the_engine_s_key(flags: str, engine: dict[str, object]) -> None:
    result = imported(flags)
    assert ([m.get("engine") for m in result.models], result.notes) == ([engine], [])
    convert(engine, EngineOptions)


def test_every_key_of_engine_and_sampling_has_its_option() -> None:
    keys = {f.name for f in fields(EngineOptions)} | {f.name for f in fields(SamplingDefaults)}
    assert keys == {*llama_flags._ENGINE.values(), *llama_flags._SAMPLING.values()}


def test_sampling_options_become_defaults_of_the_profile() -> None:
    [model] = imported("--temp 0.6 --top-k 20 --min-p 0.05 --mirostat-lr 0.2 --typical 0.9 --dry-base 2").models
    assert model["sampling"] == {
        "temperature": 0.6, "top_k": 20, "min_p": 0.05, "mirostat_eta": 0.2, "typical_p": 0.9, "dry_base": 2,
    }  # fmt: skip


def test_a_shared_pool_gives_each_request_all_of_it_or_what_is_said() -> None:
    assert [imported(f).models[0]["context"] for f in ("-c 8000 -np 4", "-c 8000 -np 4 -kvu")] == [2000, 8000]
    assert imported("-c 8000 -np 4 --kv-unified-per-slot 5000").models[0]["context"] == 5000


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("-b 8192", "m: batch-size 8192: is not taken by a profile (Expected `int` <= 4096)"),
        ("-ctk q2_K", "m: cache-type-k q2_K: is not taken by a profile (Invalid enum value 'q2_K')"),
        ("-ts 3,1", "m: tensor_split [3.0, 1.0]: the devices of a model hold equal shares so far; allowed: [1]"),
        ("--temp 5000", "m: temperature 5000: is not taken by a profile (Expected `float` <= 1000.0)"),
        ("-lm fast", "m: load-mode fast: allowed: auto, none, mmap, dio, mlock, mmap+mlock"),
        ("--mlock 5", "m: mlock 5: is not taken by a profile (Expected `bool | null`, got `int`)"),
        ("--lora /l.gguf", "m: lora /l.gguf: no key of a profile"),
        ("-mm /p.gguf", "m: mmproj /p.gguf: no key of a profile"),
    ],
)
def test_a_value_that_no_profile_takes_is_listed_and_spoils_nothing(flags: str, note: str) -> None:
    result = imported(flags)
    assert result.models == [{"id": "m", "source": "file:/a.gguf"}]
    assert result.notes == [note]


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
