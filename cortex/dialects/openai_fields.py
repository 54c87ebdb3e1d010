"""What OpenAI's endpoints have in common: parameters, and those that are refused by name."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from common.errors import RequestError
from common.messages import Sampling
from cortex.dialects.decoding import invalid_value, unsupported

MAX_INT32 = 2**31 - 1

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
StopString = Annotated[str, Meta(min_length=1)]
TokenLimit = Annotated[int, Meta(ge=1)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Window = Annotated[int, Meta(ge=-1, le=MAX_INT32)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Only the part that is acted on."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen: OpenAI's parameters, and llama-server's beside them."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | list[StopString] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    repeat_last_n: Window | None = None
    typical_p: Share | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**20)] | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: list[StopString] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    ignore_eos: bool | None = None


class Fields(SamplingFields, frozen=True, kw_only=True):
    """Parameters of both endpoints. Unknown ones are ignored; so are user, metadata, service_tier and store."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    max_tokens: TokenLimit | None = None
    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def check(request: Fields) -> None:
    """Refuse what is not supported by name. Raises RequestError."""
    if request.stream_options is not None and not request.stream:
        raise invalid_value("stream_options", "left out unless stream is true")


def read_sampling(request: SamplingFields) -> Sampling:
    """Return how tokens are chosen."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Sampling(
        temperature=request.temperature,
        top_k=None if request.top_k is None else max(0, request.top_k),
        top_p=request.top_p,
        min_p=request.min_p,
        seed=None if request.seed is None else request.seed & 0xFFFFFFFF,
        repeat_penalty=request.repeat_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias or {},
        repeat_last_n=request.repeat_last_n,
        typical_p=request.typical_p,
        xtc_probability=request.xtc_probability,
        xtc_threshold=request.xtc_threshold,
        dry_multiplier=request.dry_multiplier,
        dry_base=request.dry_base,
        dry_allowed_length=request.dry_allowed_length,
        dry_penalty_last_n=request.dry_penalty_last_n,
        dry_sequence_breakers=request.dry_sequence_breakers,
        mirostat=request.mirostat,
        mirostat_tau=request.mirostat_tau,
        mirostat_eta=request.mirostat_eta,
        ignore_eos=bool(request.ignore_eos),
        stop=stop,
    )


def read_limit(limit: int | None) -> int | None:
    """Return a token limit that fits the bus; the neuron clamps it to the context."""
    return None if limit is None else min(limit, MAX_INT32)


def refuse(*pairs: tuple[str, bool, str]) -> None:
    """Raise for the first (parameter, is set, remedy) that is set."""
    for param, is_set, remedy in pairs:
        if is_set:
            error: RequestError = unsupported(param, remedy)
            raise error
