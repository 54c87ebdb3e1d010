"""A plan fits what is free, keeps what the profile names, and says with numbers why there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from common.catalogue import Profile
from common.engine_options import EngineOptions
from common.messages import ModelFacts
from neuron.memory.estimate import CELL_STEP, MIB, MemoryPlan, plan_memory

SMOLLM = ModelFacts(
    architecture="llama", name="SmolLM2", file_bytes=98 * 10**6, context_train=8192, kv_bytes_per_token=23040,
    layers=30, embedding=576, vocabulary=49152, capabilities=[], vocab_fingerprint="", heads=9,
)  # fmt: skip


def profile(**keys: int) -> Profile:
    return Profile(id="m", source="x", **keys)  # type: ignore[arg-type]


def test_the_demo_models_estimate_is_near_what_was_measured() -> None:
    plan = plan_memory(profile(context=4608, kv_tokens=4608, parallel=4), SMOLLM, None)
    assert isinstance(plan, MemoryPlan)
    assert abs(plan.memory_mb - 296) <= 15
    plan = plan_memory(profile(context=8192, kv_tokens=16384), SMOLLM, None)
    assert isinstance(plan, MemoryPlan)
    assert abs(plan.memory_mb - 613) <= 25


def test_unset_sizes_take_what_fits() -> None:
    ample = plan_memory(profile(), SMOLLM, 100_000)
    assert isinstance(ample, MemoryPlan)
    assert (ample.context, ample.kv_tokens) == (8192, 65536)
    tight = plan_memory(profile(), SMOLLM, 300)
    assert isinstance(tight, MemoryPlan)
    assert 0 < tight.kv_tokens < 65536
    assert tight.memory_mb <= 300


def test_a_named_context_is_kept_or_refused_never_cut() -> None:
    refused = plan_memory(profile(context=8192), SMOLLM, 200)
    assert isinstance(refused, str)
    assert "200 MiB are free" in refused
    assert "more than the model was trained for (8192)" in str(plan_memory(profile(context=9000), SMOLLM, None))


def test_vram_mb_is_a_floor() -> None:
    plan = plan_memory(profile(context=1024, kv_tokens=1024, vram_mb=400), SMOLLM, 500)
    assert isinstance(plan, MemoryPlan)
    assert plan.memory_mb == 400
    assert "400 MiB (vram_mb" in str(plan_memory(profile(context=1024, kv_tokens=1024, vram_mb=400), SMOLLM, 399))


@given(
    free=st.integers(0, 4000),
    context=st.none() | st.integers(1, 8192),
    kv_tokens=st.none() | st.integers(1, 20000),
    parallel=st.integers(1, 32),
)
def test_a_plan_never_takes_more_than_is_free(
    free: int, context: int | None, kv_tokens: int | None, parallel: int
) -> None:
    keys = {"parallel": parallel, **({"context": context} if context else {})}
    plan = plan_memory(profile(**keys, **({"kv_tokens": kv_tokens} if kv_tokens else {})), SMOLLM, free)
    if isinstance(plan, MemoryPlan):
        assert plan.memory_mb <= free
        assert plan.kv_tokens % CELL_STEP == 0
        assert 1 <= plan.context <= plan.kv_tokens
        if context is not None and (kv_tokens is None or kv_tokens >= context):
            assert plan.context == context
    else:
        assert str(free) in plan


def test_half_the_cache_takes_half_the_memory() -> None:
    quantised = EngineOptions(cache_type_k="q8_0", cache_type_v="q8_0")
    plain, small = (
        plan_memory(Profile(id="m", source="x", context=8192, kv_tokens=16384, engine=e), SMOLLM, None, kind="cuda")
        for e in (EngineOptions(), quantised)
    )
    assert isinstance(plain, MemoryPlan)
    assert isinstance(small, MemoryPlan)
    assert plain.memory_mb - small.memory_mb == pytest.approx(360 * (1 - 17 / 32), abs=2)


def test_a_window_holds_windows_unless_it_is_to_hold_all() -> None:
    facts = structs.replace(SMOLLM, kv_bytes_per_token=2880, window_bytes_per_token=20160, window=512)
    least, most = (
        plan_memory(
            Profile(id="m", source="x", context=8192, kv_tokens=65536, engine=EngineOptions(swa_full=full)),
            facts, None, kind="cuda",
        ) for full in (False, True)
    )  # fmt: skip
    assert isinstance(least, MemoryPlan)
    assert isinstance(most, MemoryPlan)
    cells = 65536 - (17 * 512 + 512)
    assert most.memory_mb - least.memory_mb == pytest.approx(cells * (20160 + 1024) / MIB, abs=3)


def test_states_are_counted_for_each_sequence() -> None:
    facts = structs.replace(SMOLLM, state_bytes=10 * MIB)
    few, many = (plan_memory(profile(context=1024, kv_tokens=1024, parallel=n), facts, None) for n in (1, 8))
    assert isinstance(few, MemoryPlan)
    assert isinstance(many, MemoryPlan)
    assert many.memory_mb - few.memory_mb == pytest.approx(10 * (17 - 4), abs=8)


LAYERED = structs.replace(
    SMOLLM, layer_bytes=[100 * MIB] * 30, output_bytes=200 * MIB, host_bytes=300 * MIB, file_bytes=3500 * MIB
)


@given(free=st.integers(300, 8000))
def test_a_gpu_gets_as_many_layers_as_fit_and_the_host_the_rest(free: int) -> None:
    plan = plan_memory(profile(context=4096, kv_tokens=4096), LAYERED, free, kind="cuda")
    if isinstance(plan, str):
        assert free < 700
        return
    assert plan.memory_mb <= free
    if plan.gpu_layers is None:
        assert plan.memory_mb > 3200
        assert plan.host_mb == 300
        return
    assert free < 3500
    assert plan.host_mb >= 300 + 100 * (31 - max(1, plan.gpu_layers))
    one_more = structs.replace(
        profile(context=4096, kv_tokens=4096), engine=EngineOptions(n_gpu_layers=plan.gpu_layers + 1)
    )
    assert isinstance(plan_memory(one_more, LAYERED, free, kind="cuda"), str)


def test_an_open_context_gets_short_before_layers_leave_but_stays_useful() -> None:
    whole = plan_memory(profile(), LAYERED, 3800, kind="cuda")
    assert isinstance(whole, MemoryPlan)
    assert (whole.gpu_layers, whole.context < 65536) == (None, True)
    part = plan_memory(profile(), LAYERED, 2000, kind="cuda")
    assert isinstance(part, MemoryPlan)
    assert part.gpu_layers is not None
    assert part.context >= 4096


def test_scaling_admits_a_longer_context() -> None:
    def plan(context: int) -> MemoryPlan | str:
        scaled = Profile(id="m", source="x", context=context, engine=EngineOptions(rope_scale=2.0))
        return plan_memory(scaled, SMOLLM, None)

    assert isinstance(plan(16384), MemoryPlan)
    assert "8192, stretched 16384" in str(plan(16385))
