import pytest

from common.errors import Code, RequestError
from common.messages import Sampling
from neuron.worker.sampling import Draw, Greedy, LogitBias, MinP, Penalties, Temperature, TopK, TopP, stages


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
