import pytest

from common.errors import Code, RequestError
from common.messages import Sampling
from neuron.worker.sampling import (
    Draw,
    Dry,
    Greedy,
    LogitBias,
    MinP,
    Mirostat,
    NoEnd,
    Penalties,
    Temperature,
    TopK,
    TopP,
    Typical,
    Xtc,
    stages,
)


def test_the_defaults_are_those_of_llama_cpp() -> None:
    assert stages(Sampling(seed=7), 1000, 4096) == [TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8), Draw(7)]


def test_temperature_zero_is_greedy_and_keeps_bias_and_penalties() -> None:
    sampling = Sampling(temperature=0, top_k=3, logit_bias={5: -100.0}, presence_penalty=0.5)
    assert stages(sampling, 1000, 4096) == [LogitBias([(5, -100.0)]), Penalties(64, 1.0, 0.0, 0.5), Greedy()]


def test_stages_without_effect_are_left_out() -> None:
    assert stages(Sampling(temperature=1, top_k=0, top_p=1, min_p=0, seed=1), 1000, 4096) == [Draw(1)]


def test_seeds_are_kept_but_for_the_one_that_means_random() -> None:
    assert stages(Sampling(seed=-1), 10, 4096)[-1] == Draw(0)
    assert stages(Sampling(seed=2**40 + 3), 10, 4096)[-1] == Draw(3)


def test_without_a_seed_each_request_draws_its_own() -> None:
    assert len({stages(Sampling(), 10, 4096)[-1] for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(repeat_penalty=0.0), "repeat_penalty"),
        (Sampling(presence_penalty=float("inf")), "presence_penalty"),
        (Sampling(logit_bias={1000: 1.0}), "logit_bias"),
        (Sampling(logit_bias={-1: 1.0}), "logit_bias"),
        (Sampling(logit_bias={1: float("nan")}), "logit_bias"),
    ],
)
def test_values_that_would_end_the_process_are_refused_by_name(sampling: Sampling, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        stages(sampling, 1000, 4096)
    assert (refusal.value.code, refusal.value.param) == (Code.INVALID_VALUE, param)


def test_the_rest_of_sampling_stands_where_llama_cpp_puts_it() -> None:
    sampling = Sampling(
        seed=3,
        typical_p=0.9,
        xtc_probability=0.5,
        dry_multiplier=0.8,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        ignore_eos=True,
    )
    assert stages(sampling, 1000, 4096) == [
        NoEnd(),
        Penalties(4096, 1.1, 0.0, 0.0),
        Dry(0.8, 1.75, 2, 64, ("\n", ":", '"', "*")),
        TopK(40),
        Typical(0.9),
        TopP(0.95),
        MinP(0.05),
        Xtc(0.5, 0.1, 3),
        Temperature(0.8),
        Draw(3),
    ]


def test_mirostat_takes_the_place_of_the_rest() -> None:
    sampling = Sampling(mirostat=2, top_k=3, repeat_penalty=2.0, seed=5, temperature=1.0)
    assert stages(sampling, 1000, 4096) == [Temperature(1.0), Mirostat(2, 5.0, 0.1, 5)]
    assert stages(Sampling(mirostat=1, temperature=0), 1000, 4096) == [Greedy()]


def test_xtc_above_its_highest_threshold_has_no_effect() -> None:
    assert stages(
        Sampling(temperature=1, top_k=0, top_p=1, min_p=0, xtc_probability=1, xtc_threshold=0.6, seed=1), 9, 9
    ) == [Draw(1)]


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(top_p=float("nan")), "top_p"),
        (Sampling(typical_p=1.5), "typical_p"),
        (Sampling(xtc_probability=-0.1), "xtc_probability"),
        (Sampling(dry_base=0.5), "dry_base"),
        (Sampling(dry_sequence_breakers=["x"] * 33), "dry_sequence_breakers"),
        (Sampling(dry_sequence_breakers=[""]), "dry_sequence_breakers"),
        (Sampling(mirostat=3), "mirostat"),
        (Sampling(mirostat_tau=float("inf")), "mirostat_tau"),
    ],
)
def test_the_rest_is_refused_by_name_outside_its_range(sampling: Sampling, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        stages(sampling, 1000, 4096)
    assert refusal.value.param == param
