"""A plan fits what is free, keeps what the profile names, and says with numbers why there is none."""

from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Profile
from common.messages import ModelFacts
from neuron.memory.estimate import CELL_STEP, MemoryPlan, plan_memory

SMOLLM = ModelFacts(
    architecture="llama", name="SmolLM2", file_bytes=98 * 10**6, context_train=8192, kv_bytes_per_token=23040,
    layers=30, embedding=576, vocabulary=49152, capabilities=[], vocab_fingerprint="",
)  # fmt: skip


def profile(**keys: int) -> Profile:
    return Profile(id="m", source="x", **keys)  # type: ignore[arg-type]


def test_the_demo_models_estimate_is_near_what_was_measured() -> None:
    plan = plan_memory(profile(context=4608, kv_tokens=4608, parallel=4), SMOLLM, None)
    assert isinstance(plan, MemoryPlan)
    assert abs(plan.memory_mb - 225) <= 15
    plan = plan_memory(profile(context=8192, kv_tokens=16384), SMOLLM, None)
    assert isinstance(plan, MemoryPlan)
    assert abs(plan.memory_mb - 483) <= 25


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
