"""Options of a profile: what is wrong is named with what is allowed, and the more particular word stands."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from common.catalogue import Profile, load_catalogue
from common.engine_options import EngineOptions, SamplingDefaults, attention_rows, merged
from common.errors import ConfigError
from common.messages import Done, Effective, EffectiveReply, Load, LoadModel, Prepare, Refused
from neuron.discovery import Device
from tests.support.drive import FACTS, Drive, job, profile


def read(folder: Path, text: str) -> list[Profile]:
    (folder / "models.yaml").write_text(text)
    return load_catalogue(folder / "models.yaml").models


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n_gpu_layers: some", "engine.n_gpu_layers: .*allowed: all, auto, a whole number"),
        ("n_gpu_layers: -1", "engine.n_gpu_layers: .*>= 0"),
        ("n_cpu_moe: -1", "engine.n_cpu_moe"),
        ("cpu_moe: 7", "engine.cpu_moe: expected true or false"),
        ("override_tensor: [no-buffer]", r"engine.override_tensor\[0\]: .*PATTERN=BUFFER"),
        ("override_tensor: ['a(=CPU']", r"engine.override_tensor\[0\]: .*is no pattern"),
        ("override_tensor: ['(?i)a=CPU']", r"engine.override_tensor\[0\]: .*not known to ECMAScript"),
        ("tensor_split: [1, 1]", r"engine.tensor_split: .*equal shares so far; allowed: \[1\]"),
        ("split_mode: column", "engine.split_mode: .*allowed: none, layer, row, tensor"),
        ("main_gpu: 1", "engine.main_gpu: .*allowed: 0 to 0"),
        ("flash_attn: maybe", "engine.flash_attn: .*allowed: on, off, auto, true, false"),
        ("cache_type_k: q3_k", "engine.cache_type_k: .*allowed: f32, f16, bf16, q8_0"),
        ("{cache_type_v: q8_0, flash_attn: off}", "engine.cache_type_v: .*needs flash attention"),
        ("batch: 8", "engine.batch: .*>= 32"),
        ("{batch: 32, ubatch: 64}", "engine.ubatch: .*allowed: 1 to 32"),
        ("threads: 0", "engine.threads: .*>= 1"),
        ("threads_batch: many", "engine.threads_batch"),
        ("rope_scaling: ntk", "engine.rope_scaling: .*allowed: none, linear, yarn, longrope"),
        ("rope_scale: 0", "engine.rope_scale: .*> 0"),
        ("{rope_scale: 2, rope_freq_scale: 0.5}", "engine.rope_scale: .*leave one of them out"),
        ("yarn_orig_ctx: 0", "engine.yarn_orig_ctx: .*>= 1"),
        ("yarn_ext_factor: x", "engine.yarn_ext_factor"),
        ("swa_full: 2", "engine.swa_full: expected true or false"),
        ("load_mode: fast", "engine.load_mode: .*allowed: mmap, read, direct_io"),
        ("{mlock: true, load_mode: direct_io}", "engine.mlock: .*allowed: mmap, read"),
        ("numa: mirror", "engine.numa: .*allowed: distribute, isolate, numactl"),
        ("override_kv: [a=b]", r"engine.override_kv\[0\]: .*one of int, float, bool, str"),
        ("override_kv: ['a=int:x']", r"engine.override_kv\[0\]: .*is no int"),
        ("override_kv: ['a=bool:1']", r"engine.override_kv\[0\]: .*true, false"),
        ("chat_template_file: chat.jinja", "engine.chat_template_file: .*absolute path"),
        ("mmproj: x", "engine.mmproj: images are not read yet"),
        ("lora: x", "engine.lora: adapters are not loaded yet"),
        ("draft: x", "engine.draft: speculative decoding does not work yet"),
        ("ngl: 3", "engine.ngl: unknown key; allowed here: .*n_gpu_layers"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(tmp_path: Path, line: str, words: str) -> None:
    engine = line if line.startswith("{") else f"{{{line}}}"
    with pytest.raises(ConfigError, match=rf"models\[0\].{words}"):
        read(tmp_path, f"models:\n- {{id: a, source: a.gguf, engine: {engine}}}")
    with pytest.raises(ConfigError, match=f"defaults.{words}"):
        read(tmp_path, f"defaults: {{engine: {engine}}}")


def test_a_batch_holds_all_sequences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\[0\].engine.batch: .*40 sequences at once; allowed: 80"):
        read(tmp_path, "models:\n- {id: a, source: a.gguf, parallel: 40, engine: {batch: 64}}")


def test_what_spans_devices_is_split_over_just_those(tmp_path: Path) -> None:
    def one(engine: str) -> EngineOptions:
        return read(tmp_path, f"models:\n- {{id: a, source: a.gguf, min_devices: 2, engine: {{{engine}}}}}")[0].engine

    assert one("tensor_split: [1, 1], split_mode: row, main_gpu: 1").split_mode == "row"
    for line, words in (
        ("tensor_split: [2, 1]", "equal"),
        ("split_mode: none", "layer, row"),
        ("main_gpu: 2", "0 to 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            one(line)


@pytest.mark.parametrize("line", ["temperature: -1", "top_p: 2", "mirostat: 3", "seed: 1", "repeat_last_n: -2"])
def test_sampling_defaults_are_held_to_their_ranges(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\[0\].sampling.{line.partition(':')[0]}"):
        read(tmp_path, f"models:\n- {{id: a, source: a.gguf, sampling: {{{line}}}}}")


def test_defaults_hold_key_by_key_where_a_profile_says_nothing(tmp_path: Path) -> None:
    first, second = read(
        tmp_path,
        """
defaults:
  parallel: 3
  context: 4096
  engine: {cache_type_k: q8_0, threads: 4, cpu_moe: true}
  sampling: {temperature: 0.5, top_k: 10}
models:
- {id: a, source: a.gguf}
- {id: b, source: b.gguf, parallel: 2, engine: {threads: 8, cpu_moe: false}, sampling: {top_k: 0}}
""",
    )
    assert (first.parallel, first.context) == (3, 4096)
    assert first.engine == EngineOptions(cache_type_k="q8_0", threads=4, cpu_moe=True)
    assert first.sampling == SamplingDefaults(temperature=0.5, top_k=10)
    assert (second.parallel, second.context) == (2, 4096)
    assert second.engine == EngineOptions(cache_type_k="q8_0", threads=8, cpu_moe=False)
    assert second.sampling == SamplingDefaults(temperature=0.5, top_k=0)


def test_merging_changes_only_what_is_set() -> None:
    under = EngineOptions(batch=64, override_kv=["a=int:1"], flash_attn=False)
    assert merged(under, EngineOptions()) == under
    assert merged(under, EngineOptions(batch=128)) == EngineOptions(
        batch=128, override_kv=["a=int:1"], flash_attn=False
    )


@pytest.mark.parametrize(
    ("options", "stretch"),
    [
        ({}, 1.0),
        ({"rope_scale": 4.0}, 4.0),
        ({"rope_freq_scale": 0.25}, 4.0),
        ({"rope_scale": 4.0, "rope_scaling": "none"}, 1.0),
        ({"rope_freq_base": 1e6}, float("inf")),
    ],
)
def test_scaling_allows_more_than_the_trained_context(options: dict[str, Any], stretch: float) -> None:
    assert EngineOptions(**options).stretch == stretch


def test_experts_of_the_first_layers_stay_in_host_memory() -> None:
    assert EngineOptions(n_cpu_moe=99).host_patterns(2) == [
        rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps" for i in (0, 1)
    ]
    assert EngineOptions(override_tensor=["a=CUDA0", "b=CPU"], cpu_moe=True).host_patterns(2)[0] == "b"


def test_scores_bound_the_rows_on_a_cpu_only() -> None:
    assert attention_rows(EngineOptions(), 65536, 9, is_cpu=True) == (56, True)
    assert attention_rows(EngineOptions(), 65536, 9, is_cpu=False) == (512, False)
    assert attention_rows(EngineOptions(), 2**20, 64, is_cpu=True) == (512, False)
    assert attention_rows(EngineOptions(flash_attn=False), 65536, 9, is_cpu=False) == (512, True)


ENGINE = EngineOptions(cache_type_k="q8_0", batch=64)


LAYERED = structs.replace(FACTS, layer_bytes=[40 * 2**20] * 10, output_bytes=20 * 2**20, host_bytes=30 * 2**20)
GPU = Device(uuid="GPU-0", name="small", kind="cuda", memory_mb=300, visible="GPU-0")


def test_options_and_defaults_reach_prep_and_worker() -> None:
    drive = Drive(models=[profile("m", engine=ENGINE, sampling=SamplingDefaults(top_k=7))]).start().connect()
    drive.submit(job("j"))
    [prepare] = drive.sent_to("prep", Prepare)
    assert (prepare.engine, prepare.sampling) == (ENGINE, SamplingDefaults(top_k=7))
    assert drive.sent_to("CPU-0", LoadModel)[0].engine == ENGINE


def on_gpu(**engine: Any) -> Drive:
    """Return a machine with one GPU of 300 MiB, asked for a model of 420."""
    options = structs.replace(ENGINE, **engine)
    drive = Drive(devices=[GPU], models=[profile("m", vram_mb=1, engine=options)])
    drive.facts["m"] = LAYERED
    drive.start().connect("ctl", "admin")
    drive.peer_says(Load(request="l", model="m"), "ctl")
    return drive


def test_a_gpu_that_cannot_hold_all_layers_gets_as_many_as_fit_and_says_so() -> None:
    drive = on_gpu()
    [order] = drive.sent_to("GPU-0", LoadModel)
    assert isinstance(order.engine.n_gpu_layers, int)
    assert 1 < order.engine.n_gpu_layers < 11
    assert drive.told_of(Done, "ctl")
    drive.peer_says(Effective(request="e", model="m"), "ctl")
    [reply] = drive.told_of(EffectiveReply, "ctl")
    rows = {s.name: (s.value, s.why) for s in reply.settings}
    assert rows["n_gpu_layers"] == (f"{order.engine.n_gpu_layers}/11", "as many as fit")
    assert rows["cache_type_k"] == ("q8_0", "profile")
    assert rows["context"] == ("1000", "profile")
    assert rows["memory, in use"][0] == "250 MiB"


@pytest.mark.parametrize("layers", ["all", 11, 9])
def test_layers_that_the_profile_names_are_kept_or_refused(layers: int | str) -> None:
    drive = on_gpu(n_gpu_layers=layers)
    assert drive.sent_to("GPU-0", LoadModel) == []
    [refused] = drive.told_of(Refused, "ctl")
    assert "300 MiB are free" in refused.message


def test_fewer_layers_than_fit_are_taken_as_they_are() -> None:
    [order] = on_gpu(n_gpu_layers=2).sent_to("GPU-0", LoadModel)
    assert order.engine.n_gpu_layers == 2
