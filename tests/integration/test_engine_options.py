"""Each option of a profile's `engine:` changes what llama.cpp really has: asked of its context, or read in its log.

And what is estimated from a header with those options is what llama.cpp takes.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from msgspec import convert

from common.catalogue import Profile
from common.engine_options import CACHE_BYTES, EngineOptions, SamplingDefaults
from common.messages import (
    Chat,
    Inspect,
    Inspected,
    InspectFailed,
    Job,
    ModelFacts,
    Prepare,
    Prepared,
    Sampling,
    TokenIds,
)
from neuron.memory.estimate import IDLE_SEQUENCES, MemoryPlan, plan_memory
from neuron.prep import llama_said
from neuron.prep.llama_vocabulary import open_vocabulary
from neuron.prep.service import Service
from neuron.worker import llama_log
from neuron.worker.engine import Chunk, LoadError
from neuron.worker.llama_engine import LlamaEngine, LlamaModel
from neuron.worker.llama_params import ModelParams, generation_params
from tests.support.gguf_files import write_tiny
from tests.support.harness import DEMO_MODEL, Neuron
from tests.support.tiny_models import EXPERTS, LAYERS, write_tiny_model

PROMPT = [1, *range(300, 420)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "moe", "gemma3"):
        write_tiny_model(folder, kind)
    return folder


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(2, "cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(engine: LlamaEngine, folder: Path) -> dict[str, str]:
    """What is in force where nothing is said."""
    loads = Loads(engine, folder)
    model = loads()
    model.close()
    return model.in_force


@pytest.fixture
def load(engine: LlamaEngine, folder: Path) -> Iterator["Loads"]:
    loads = Loads(engine, folder)
    yield loads
    for model in loads.open:
        model.close()


class Loads:
    """Loads tiny models and closes them after the test."""

    def __init__(self, engine: LlamaEngine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self.open: list[LlamaModel] = []

    def __call__(self, kind: str = "llama", *, kv_tokens: int = 1024, **options: Any) -> LlamaModel:
        model = self._engine.load(
            str(self._folder / f"{kind}-1.gguf"), kv_tokens=kv_tokens, parallel=2, idle=2,
            options=EngineOptions(**options), progress=lambda _: True,
        )  # fmt: skip
        self.open.append(model)
        return model


def likeliest(model: LlamaModel) -> list[float]:
    """Return the log-probabilities of the likeliest tokens after the prompt."""
    model.decode([Chunk(0, 0, PROMPT, True)])
    told = model.likelihoods(0, 5, 8)
    model.forget(0)
    return [t.logprob for t in told.top]


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"batch": 64}, "batch", "64"),
        ({"batch": 1024, "ubatch": 1024}, "ubatch", "1024"),
        ({"ubatch": 32}, "ubatch", "32"),
        ({"threads": 1}, "threads", "1"),
        ({"threads": 1}, "threads_batch", "1"),
        ({"threads": 2, "threads_batch": 1}, "threads_batch", "1"),
        ({"flash_attn": "on"}, "flash_attn", "on"),
        ({"flash_attn": True}, "flash_attn", "on"),
        ({"flash_attn": "off"}, "flash_attn", "off"),
        ({"flash_attn": "auto"}, "flash_attn", "on"),
        ({"load_mode": "read"}, "load_mode", "none"),
        ({"load_mode": "mmap"}, "load_mode", "mmap"),
        ({"load_mode": "direct_io"}, "load_mode", "dio"),
        ({"mlock": True}, "load_mode", "mmap+mlock"),
        ({"mlock": True, "load_mode": "read"}, "load_mode", "mlock"),
        ({"rope_freq_base": 50000.0}, "rope_freq_base", "50000.0"),
        ({"rope_freq_scale": 0.5}, "rope_freq_scale", "0.5"),
        ({"rope_scale": 4.0}, "rope_freq_scale", "0.25"),
        ({"override_kv": ["llama.rope.freq_base=float:7"]}, "override_kv llama.rope.freq_base", "7.000000"),
        ({"override_kv": ["llama.context_length=int:999"]}, "override_kv llama.context_length", "999"),
        ({"override_kv": ["general.name=str:other"]}, "override_kv general.name", "other"),
    ],
)
def test_an_option_is_in_force(
    load: Loads, plain: dict[str, str], options: dict[str, Any], name: str, value: str
) -> None:
    assert load(**options).in_force[name] == value
    assert plain.get(name) != value or (name, value) in {("flash_attn", "off"), ("load_mode", "mmap")}


WIDE_HEADS = [
    *("llama.attention.head_count=int:2", "llama.attention.head_count_kv=int:2", "llama.rope.dimension_count=int:32"),
    *("llama.attention.key_length=int:32", "llama.attention.value_length=int:32"),
]
"""Quantised caches come in blocks of 32."""


@pytest.mark.parametrize("kind", CACHE_BYTES)
def test_the_types_of_the_cache_are_in_force_and_take_what_they_say(load: Loads, kind: str) -> None:
    model = load(kv_tokens=16384, cache_type_k=kind, cache_type_v=kind, override_kv=WIDE_HEADS)
    assert (model.in_force["cache_type_k"], model.in_force["cache_type_v"]) == (kind, kind)
    assert model.kv_mb == round(2 * 64 * LAYERS * 16384 * CACHE_BYTES[kind] / 2**20)
    likeliest(model)


def test_a_cache_in_blocks_that_heads_do_not_fill_is_refused_in_llama_cpps_words(load: Loads) -> None:
    with pytest.raises(LoadError, match="block size 32 does not divide"):
        load(cache_type_k="q8_0", cache_type_v="q8_0")


@pytest.mark.parametrize(
    ("plain", "changed"),
    [
        ({}, {"rope_freq_base": 50000.0}),
        ({}, {"rope_freq_scale": 0.25}),
        ({"rope_scale": 4.0}, {"rope_scale": 4.0, "rope_scaling": "none"}),
        ({}, {"rope_scaling": "yarn", "rope_scale": 4.0}),
        *(
            ({"rope_scaling": "yarn", "rope_scale": 4.0}, {"rope_scaling": "yarn", "rope_scale": 4.0, key: value})
            for key, value in (
                ("yarn_ext_factor", 0.5), ("yarn_beta_slow", 4.0), ("yarn_beta_fast", 4.0), ("yarn_orig_ctx", 64),
            )
        ),
        ({"yarn_ext_factor": 0.0}, {"yarn_ext_factor": 0.0, "yarn_attn_factor": 0.5}),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_tell_changes_what_the_model_says(
    load: Loads, plain: dict[str, Any], changed: dict[str, Any]
) -> None:
    before = likeliest(load(**plain))
    assert before == pytest.approx(likeliest(load.open[0]))
    assert before != pytest.approx(likeliest(load(**changed)), rel=1e-4)


def test_a_full_window_holds_whole_contexts(load: Loads) -> None:
    windowed, full = (load("gemma3", kv_tokens=8192, ubatch=32, swa_full=full) for full in (False, True))
    assert full.kv_mb > windowed.kv_mb
    for model in (windowed, full):
        for start in range(0, 500, 100):
            model.decode([Chunk(0, start, [5] * 100, True)])
    assert (windowed.can_cut(0, 100), full.can_cut(0, 100)) == (False, True)


@pytest.mark.parametrize(
    ("options", "placed"),
    [
        ({"override_tensor": [r"ffn_.*_exps\.=CPU"]}, 3 * LAYERS),
        ({"override_tensor": [r"blk\.0\.attn_q=CPU", r"blk\.1\.ffn_up_exps=CPU"]}, 2),
        ({"cpu_moe": True}, 3 * LAYERS),
        ({"n_cpu_moe": 2}, 3 * 2),
    ],
)
def test_tensors_of_a_mixture_are_where_the_options_put_them(load: Loads, options: dict[str, Any], placed: int) -> None:
    assert EXPERTS > 1
    model = load("moe", **options)
    assert model.in_force["override_tensor CPU"] == f"{placed} tensors"
    likeliest(model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"override_tensor": ["a=GPU9"]}, r"no buffer type 'GPU9' here; allowed: .*CPU"),
        ({"override_kv": ["llama.context_length=str:many"]}, r"'llama.context_length' has the type int"),
    ],
)
def test_what_cannot_be_is_refused_by_name(load: Loads, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        load(**options)


def test_the_options_of_gpus_reach_llama_cpp() -> None:
    def of(kind: str = "cuda", **options: Any) -> ModelParams:
        return ModelParams(EngineOptions(**options), kind, lambda _: True)

    assert [of(n_gpu_layers=n).value.n_gpu_layers for n in (0, 7, "all", None)] == [0, 7, -1, -1]
    assert of("cpu", n_gpu_layers=7).value.n_gpu_layers == 0
    assert [of(split_mode=m).value.split_mode for m in ("none", "layer", "row", "tensor", None)] == [0, 1, 2, 3, 0]
    assert of(main_gpu=0).value.main_gpu == 0
    assert of(tensor_split=[3.0]).value.tensor_split[0] == 3.0
    over_two = ModelParams(EngineOptions(), "cuda", lambda _: True, [1, 2]).value
    assert (over_two.split_mode, list(over_two.tensor_split[:3])) == (1, [1.0, 1.0, 0.0])


def test_a_batch_of_another_size_is_really_decoded(load: Loads) -> None:
    large = load(batch=1024)
    assert large.batch_tokens == 1024
    large.decode([Chunk(0, 0, [5] * 1000, True)])
    small = load(batch=32)
    assert small.batch_tokens == 32


def test_numa_is_told_once_and_takes_every_word(load: Loads) -> None:
    for word in ("distribute", "isolate", "numactl"):
        likeliest(load(numa=word))


def test_the_size_of_the_pool_is_no_warning(load: Loads, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="llama.cpp"):
        load(override_kv=["llama.context_length=int:512"])
    assert not [r for r in caplog.records if "n_ctx_train" in r.getMessage()]


def test_a_cpu_computes_as_many_rows_as_their_scores_may_take() -> None:
    def rows(**options: Any) -> tuple[int, int]:
        params = generation_params(
            EngineOptions(**options), "cpu", threads=1, kv_tokens=65536, sequences=4, heads=9
        )  # fmt: skip
        return params.n_ubatch, params.flash_attn_type

    assert rows() == (56, 0)
    assert rows(cache_type_v="q8_0") == (512, -1)
    assert rows(flash_attn="on") == (512, 1)
    assert rows(ubatch=32) == (32, 0)


SHAPES: list[tuple[str, dict[str, int], dict[str, Any]]] = [
    ("demo", {"context": 4608, "kv_tokens": 4608, "parallel": 4}, {}),
    ("demo", {"context": 8192, "kv_tokens": 16384}, {}),
    ("demo", {"context": 8192, "kv_tokens": 16384}, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("demo", {"context": 8192, "kv_tokens": 8192}, {"flash_attn": "on", "ubatch": 128}),
    ("demo", {"context": 8192, "kv_tokens": 8192, "parallel": 2}, {"batch": 2048, "ubatch": 2048}),
    ("gemma3", {"context": 4096, "kv_tokens": 65536}, {}),
    ("gemma3", {"context": 4096, "kv_tokens": 65536}, {"swa_full": True}),
    ("lfm2", {"context": 4096, "kv_tokens": 65536}, {}),
]


def test_estimated_memory_is_within_a_tenth_of_what_is_taken(tmp_path: Path) -> None:
    paths = {"demo": str(DEMO_MODEL)} | {k: str(write_tiny_model(tmp_path, k)) for k in ("gemma3", "lfm2")}
    facts = []
    llama_said.listen()
    for kind, _, given in SHAPES:  # all of them before an engine takes llama.cpp's log for itself
        options = EngineOptions(**given)
        vocabulary = open_vocabulary(paths[kind], options)
        facts.append(vocabulary.measure(options))
        vocabulary.close()
    engine = LlamaEngine(2, "cpu")
    for (kind, sizes, given), fact in zip(SHAPES, facts, strict=True):
        options = EngineOptions(**given)
        plan = plan_memory(convert({"id": "m", "source": "x", **sizes, "engine": given}, Profile), fact, None)
        assert isinstance(plan, MemoryPlan)
        model = engine.load(
            paths[kind], kv_tokens=plan.kv_tokens, parallel=plan.parallel, idle=IDLE_SEQUENCES, options=options,
            progress=lambda _: True,
        )  # fmt: skip
        measured = model.memory_mb
        model.close()
        assert plan.memory_mb == pytest.approx(measured, rel=0.1), (kind, sizes, given)
        again = plan_memory(
            convert({"id": "m", "source": "x", **sizes, "engine": given}, Profile), fact, None,
            measured - plan.estimated_mb,
        )  # fmt: skip
        assert isinstance(again, MemoryPlan)
        assert again.memory_mb == pytest.approx(measured, rel=0.03, abs=1)


@pytest.fixture
def prep() -> Iterator[Service]:
    service = Service(open_vocabulary)
    llama_said.listen()
    yield service
    service.close()
    llama_log.capture(llama_cpp.llama_log_set, llama_cpp.llama_log_callback)


def prepared(prep: Service, path: Path, defaults: SamplingDefaults | None = None, **job: Any) -> Prepared:
    options = job.pop("engine", EngineOptions())
    order = Job(id="j", attempt=1, model="m", request_id="r", **{"input": TokenIds(ids=[1, 2]), **job})
    answer = prep.answer(
        Prepare(job=order, path=str(path), context=512, engine=options, sampling=defaults or SamplingDefaults())
    )
    assert isinstance(answer, Prepared), answer
    return answer


def test_sampling_is_the_requests_else_the_profiles_else_the_files(prep: Service, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", numbers={"general.sampling.temp": 0.25, "general.sampling.top_k": 9})
    of_file = prepared(prep, path).sampling
    assert of_file == Sampling(temperature=0.25, top_k=9)
    of_profile = prepared(prep, path, SamplingDefaults(top_k=3, min_p=0.5)).sampling
    assert of_profile == Sampling(temperature=0.25, top_k=3, min_p=0.5)
    asked = prepared(prep, path, SamplingDefaults(top_k=3), sampling=Sampling(top_k=0, temperature=1.0)).sampling
    assert asked == Sampling(temperature=1.0, top_k=0)


def test_a_template_file_takes_the_place_of_the_files_own(prep: Service, tmp_path: Path) -> None:
    path, template = write_tiny(tmp_path / "m.gguf"), tmp_path / "chat.jinja"
    chat = Chat(messages=[{"role": "user", "content": "abc"}])
    plain = prepared(prep, path, input=chat).tokens
    template.write_text("XX{{ messages[0].content }}")
    options = EngineOptions(chat_template_file=str(template))
    longer = prepared(prep, path, input=chat, engine=options).tokens
    assert len(longer) == len(plain) + 2
    template.unlink()
    answer = prep.answer(Inspect(model="m", path=str(path), engine=options))
    assert isinstance(answer, InspectFailed)
    assert "chat.jinja: No such file" in answer.message


def test_prep_reads_the_header_as_it_is_overridden(prep: Service, folder: Path) -> None:
    options = EngineOptions(override_kv=["llama.context_length=int:777"])
    answer = prep.answer(Inspect(model="m", path=str(folder / "llama-1.gguf"), engine=options))
    assert isinstance(answer, Inspected)
    assert answer.facts.context_train == 777
    wrong = EngineOptions(override_kv=["llama.rope.freq_base=int:7"])
    refused = prep.answer(Inspect(model="m", path=str(folder / "llama-1.gguf"), engine=wrong))
    assert isinstance(refused, InspectFailed)
    assert "'llama.rope.freq_base' has the type float in the file, not int" in refused.message


def test_a_model_that_llama_cpp_cannot_build_is_refused_before_any_load(prep: Service, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", without="blk.0.attn_k.weight")
    answer = prep.answer(Inspect(model="m", path=str(path)))
    assert isinstance(answer, InspectFailed)
    assert "blk.0.attn_k.weight" in answer.message


def test_a_cache_that_the_heads_do_not_fill_is_refused_before_any_load(prep: Service, folder: Path) -> None:
    path = str(folder / "llama-1.gguf")
    for options in (EngineOptions(cache_type_k="q8_0"), EngineOptions(cache_type_v="q8_0")):
        answer = prep.answer(Inspect(model="m", path=path, engine=options))
        assert isinstance(answer, InspectFailed)
        assert "block size 32 does not divide" in answer.message
    fitting = EngineOptions(cache_type_k="q8_0", cache_type_v="q4_0", override_kv=WIDE_HEADS)
    assert isinstance(prep.answer(Inspect(model="m", path=path, engine=fitting)), Inspected)


def test_the_experts_of_a_mixture_are_weighed_where_they_will_be(prep: Service, folder: Path) -> None:
    def facts(**options: Any) -> ModelFacts:
        answer = prep.answer(
            Inspect(model="m", path=str(folder / "moe-1.gguf"), engine=EngineOptions(**options))
        )  # fmt: skip
        assert isinstance(answer, Inspected)
        return answer.facts

    plain, first, none = facts(), facts(n_cpu_moe=1), facts(cpu_moe=True)
    experts = 3 * EXPERTS * 64 * 96 * 4
    assert plain.layer_bytes[0] - first.layer_bytes[0] == experts == first.host_bytes - plain.host_bytes
    assert none.host_bytes - plain.host_bytes == LAYERS * experts
    assert facts(override_tensor=["_exps=CPU"]).layer_bytes == none.layer_bytes


def test_what_is_in_force_is_shown(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "llama")
    engine = {"batch": 64, "cache_type_k": "f32", "override_kv": ["llama.context_length=int:999"]}
    model = {"id": "tiny", "source": f"file:{path}", "parallel": 2, "engine": engine}
    with Neuron(tmp_path / "n", models=[model], defaults={"sampling": {"top_k": 5}}) as neuron:
        assert neuron.ctl("load", "tiny").returncode == 0
        rows = json.loads(neuron.ctl("--json", "models", "--effective", "tiny").stdout)["settings"]
        shown = {r["name"]: (r["value"], r["why"]) for r in rows}
        assert shown["batch"] == ("64", "profile")
        assert shown["cache_type_k"] == ("f32", "profile")
        assert shown["cache_type_v"] == ("f16", "llama.cpp's default")
        assert shown["context"] == ("999", "trained for 999")
        assert shown["override_kv llama.context_length"] == ("999", "profile")
        assert shown["top_k"] == ("5", "profile, where a request says nothing")
        assert shown["memory, in use"][1] == "as llama.cpp accounts for it"
        text = neuron.ctl("models", "--effective", "tiny").stdout
        assert "SETTING" in text
        assert "cache_type_k" in text
        unknown = neuron.ctl("models", "--effective", "absent")
        assert unknown.returncode == 1
        assert "known: tiny" in unknown.stderr
