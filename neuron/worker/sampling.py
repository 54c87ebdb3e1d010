"""How the next token is chosen, as a list of stages. Pure; the engine builds its own samplers from it.

Order and defaults are those of llama.cpp's common sampler (common/sampling.cpp, common/common.h).
"""

import secrets
from typing import NamedTuple, TypeVar

from common.errors import Code, RequestError
from common.messages import Sampling

T = TypeVar("T")

PENALTY_WINDOW = 64
"""Also of DRY."""
DRY_BREAKERS = ("\n", ":", '"', "*")
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


class Typical(NamedTuple):
    """Keep those whose surprise is nearest to the expected one, together p."""

    p: float


class Xtc(NamedTuple):
    """With a probability, drop all above the threshold but the least likely of them."""

    probability: float
    threshold: float
    seed: int


class Dry(NamedTuple):
    """Lower the logits of tokens that would go on with a repetition."""

    multiplier: float
    base: float
    allowed_length: int
    window: int
    breakers: tuple[str, ...]


class NoEnd(NamedTuple):
    """Forbid the tokens that end the answer."""


class Temperature(NamedTuple):
    """Divide the logits."""

    temperature: float


class Greedy(NamedTuple):
    """Choose the likeliest. Last in its list."""


class Draw(NamedTuple):
    """Draw from what is left. Last in its list."""

    seed: int


class Mirostat(NamedTuple):
    """Draw so that the surprise stays near tau. Last in its list."""

    version: int
    tau: float
    eta: float
    seed: int


Stage = (
    LogitBias | NoEnd | Penalties | Dry | TopK | Typical | TopP | MinP | Xtc | Temperature | Greedy | Draw | Mirostat
)


def stages(sampling: Sampling, vocabulary: int, context: int) -> list[Stage]:
    """Return the stages that have an effect, in order. Raises RequestError for a value llama.cpp would choke on."""
    check(sampling, vocabulary)
    chain: list[Stage] = []
    if sampling.logit_bias:
        chain.append(LogitBias(sorted(sampling.logit_bias.items())))
    if sampling.ignore_eos:
        chain.append(NoEnd())
    temperature = _given(sampling.temperature, 0.8)
    is_greedy, seed = temperature < GREEDY_BELOW, _seed(sampling.seed)
    if sampling.mirostat and not is_greedy:
        # As in llama.cpp, it takes the place of everything else but the temperature.
        tau, eta = _given(sampling.mirostat_tau, 5.0), _given(sampling.mirostat_eta, 0.1)
        return [*chain, Temperature(temperature), Mirostat(sampling.mirostat, tau, eta, seed)]
    chain += _penalties(sampling, context)
    if is_greedy:
        return [*chain, Greedy()]
    top_k, top_p, min_p = _given(sampling.top_k, 40), _given(sampling.top_p, 0.95), _given(sampling.min_p, 0.05)
    typical_p, threshold = _given(sampling.typical_p, 1.0), _given(sampling.xtc_threshold, 0.1)
    if top_k > 0:
        chain.append(TopK(min(top_k, vocabulary)))
    if typical_p < 1.0:
        chain.append(Typical(typical_p))
    if top_p < 1.0:
        chain.append(TopP(top_p))
    if min_p > 0.0:
        chain.append(MinP(min_p))
    if sampling.xtc_probability and threshold <= 0.5:
        chain.append(Xtc(sampling.xtc_probability, threshold, seed))
    if temperature != 1.0:
        chain.append(Temperature(temperature))
    return [*chain, Draw(seed)]


def _penalties(sampling: Sampling, context: int) -> list[Stage]:
    chain: list[Stage] = []
    repeat = _given(sampling.repeat_penalty, 1.0)
    frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
    window = _window(sampling.repeat_last_n, context)
    if window and (repeat != 1.0 or frequency or presence):
        chain.append(Penalties(window, repeat, frequency, presence))
    window = _window(sampling.dry_penalty_last_n, context)
    if window and sampling.dry_multiplier:
        breakers = DRY_BREAKERS if sampling.dry_sequence_breakers is None else tuple(sampling.dry_sequence_breakers)
        length = _given(sampling.dry_allowed_length, 2)
        chain.append(Dry(sampling.dry_multiplier, _given(sampling.dry_base, 1.75), length, window, breakers))
    return chain


def _window(tokens: int | None, context: int) -> int:
    return PENALTY_WINDOW if tokens is None else context if tokens < 0 else min(tokens, context)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _seed(seed: int | None) -> int:
    value = secrets.randbits(32) if seed is None else seed & 0xFFFFFFFF
    return 0 if value == _RANDOM_SEED else value


_RANGES = {
    "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0), "xtc_threshold": (0.0, 1.0),
    "dry_multiplier": (0.0, 100.0), "dry_base": (1.0, 100.0), "dry_allowed_length": (0, 2**20),
    "mirostat": (0, 2), "mirostat_tau": (0.0, 100.0), "mirostat_eta": (0.0, 1.0),
}  # fmt: skip
_BREAKERS, _BREAKER_BYTES = 32, 40


def check(sampling: Sampling, vocabulary: int) -> None:
    """Raise RequestError for a value llama.cpp would choke on."""
    for name in ("temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value is not None and not abs(value) < 1e6:  # also true of NaN
            raise _refusal(name, f"{value} is out of range")
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise _refusal(name, f"{value} is not in the range {low:g} to {high:g}")
    if sampling.repeat_penalty is not None and sampling.repeat_penalty < 1e-6:
        raise _refusal("repeat_penalty", "must be greater than 0")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise _refusal("logit_bias", f"the model has no token {token}")
        if not abs(bias) < 1e6:
            raise _refusal("logit_bias", f"{bias} is out of range")
    breakers = sampling.dry_sequence_breakers or []
    if len(breakers) > _BREAKERS or not all(0 < len(b.encode()) <= _BREAKER_BYTES and "\0" not in b for b in breakers):
        text = f"must be at most {_BREAKERS} texts of 1 to {_BREAKER_BYTES} bytes"
        raise _refusal("dry_sequence_breakers", text)


def _refusal(param: str, text: str) -> RequestError:
    return RequestError(Code.INVALID_VALUE, f"{param}: {text}", param=param)
