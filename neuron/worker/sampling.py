"""How the next token is chosen, as a list of stages. Pure; the engine builds its own samplers from it.

Order and defaults are those of llama.cpp's common sampler (common/sampling.cpp, common/common.h).
"""

import secrets
from typing import NamedTuple

from common.errors import Code, RequestError
from common.messages import Sampling

PENALTY_WINDOW = 64
GREEDY_BELOW = 1e-4
"""Dividing by less than this only overflows; the likeliest token is all that is left anyway."""
_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp reads it as "draw one", so that it cannot be asked for."""


class LogitBias(NamedTuple):
    """Add to the logits of some tokens."""

    entries: list[tuple[int, float]]


class Penalties(NamedTuple):
    """Lower the logits of tokens among the last `window`."""

    window: int
    repeat: float
    frequency: float
    presence: float


class TopK(NamedTuple):
    """Keep the k likeliest."""

    k: int


class TopP(NamedTuple):
    """Keep the likeliest that together reach p."""

    p: float


class MinP(NamedTuple):
    """Keep those at least p times as likely as the likeliest."""

    p: float


class Temperature(NamedTuple):
    """Divide the logits."""

    temperature: float


class Greedy(NamedTuple):
    """Choose the likeliest. Last in its list."""


class Draw(NamedTuple):
    """Draw from what is left. Last in its list."""

    seed: int


Stage = LogitBias | Penalties | TopK | TopP | MinP | Temperature | Greedy | Draw


def stages(sampling: Sampling, vocabulary: int) -> list[Stage]:
    """Return the stages that have an effect, in order. Raises RequestError for a value llama.cpp would choke on."""
    _check(sampling, vocabulary)
    chain: list[Stage] = []
    if sampling.logit_bias:
        chain.append(LogitBias(sorted(sampling.logit_bias.items())))
    repeat = 1.0 if sampling.repeat_penalty is None else sampling.repeat_penalty
    frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
    if repeat != 1.0 or frequency or presence:
        chain.append(Penalties(PENALTY_WINDOW, repeat, frequency, presence))
    temperature = 0.8 if sampling.temperature is None else sampling.temperature
    if temperature < GREEDY_BELOW:
        return [*chain, Greedy()]
    top_k = 40 if sampling.top_k is None else sampling.top_k
    top_p = 0.95 if sampling.top_p is None else sampling.top_p
    min_p = 0.05 if sampling.min_p is None else sampling.min_p
    if top_k > 0:
        chain.append(TopK(min(top_k, vocabulary)))
    if top_p < 1.0:
        chain.append(TopP(top_p))
    if min_p > 0.0:
        chain.append(MinP(min_p))
    if temperature != 1.0:
        chain.append(Temperature(temperature))
    return [*chain, Draw(_seed(sampling.seed))]


def _seed(seed: int | None) -> int:
    value = secrets.randbits(32) if seed is None else seed & 0xFFFFFFFF
    return 0 if value == _RANDOM_SEED else value


def _check(sampling: Sampling, vocabulary: int) -> None:
    for name in ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value is not None and not abs(value) < 1e6:  # also true of NaN
            raise RequestError(Code.INVALID_VALUE, f"{name}: {value} is out of range", param=name)
    if sampling.repeat_penalty is not None and sampling.repeat_penalty < 1e-6:
        raise RequestError(Code.INVALID_VALUE, "repeat_penalty: must be greater than 0", param="repeat_penalty")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise RequestError(Code.INVALID_VALUE, f"logit_bias: the model has no token {token}", param="logit_bias")
        if not abs(bias) < 1e6:
            raise RequestError(Code.INVALID_VALUE, f"logit_bias: {bias} is out of range", param="logit_bias")
