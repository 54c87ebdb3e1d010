"""What a supervisor and its prep process say to each other."""

from common.engine_options import EngineOptions, SamplingDefaults
from common.messages.base import Message, Part
from common.messages.jobs import Failed, Grammar, Job, Rendered, Sampling
from common.messages.work import Stop


class Inspect(Message, frozen=True, kw_only=True):
    """Read a GGUF's header and vocabulary; answered with Inspected or InspectFailed."""

    model: str
    path: str
    engine: EngineOptions = EngineOptions()
    number: int = 0
    """Of the inspection: a model may be described anew while its file is read."""


class Prepare(Message, frozen=True, kw_only=True):
    """Render, tokenise and check a job; answered with Prepared (or Rendered, if that is its answer) or Failed."""

    job: Job
    path: str
    context: int
    """Tokens one request may use."""
    engine: EngineOptions = EngineOptions()
    sampling: SamplingDefaults = SamplingDefaults()
    """The profile's, for what the job leaves open."""


class ModelFacts(Part, frozen=True, kw_only=True):
    """What a GGUF's header tells. Sizes in bytes."""

    architecture: str
    name: str
    file_bytes: int
    context_train: int
    kv_bytes_per_token: int
    """Of f16, in the layers that look back at everything."""
    layers: int
    embedding: int
    vocabulary: int
    capabilities: list[str]
    vocab_fingerprint: str
    format: str = ""
    window_bytes_per_token: int = 0
    """Of f16, in the layers that look back at a window."""
    window: int = 0
    """Tokens they look back at."""
    key_share: float = 0.5
    """Of the keys in those bytes; the rest are values."""
    state_bytes: int = 0
    """Of recurrent layers, for each sequence."""
    heads: int = 0
    layer_bytes: list[int] = []
    """Weights of each layer, without what stays in host memory whatever the device; empty: not told apart."""
    output_bytes: int = 0
    """Weights of the output, which go where the last layer goes."""
    host_bytes: int = 0
    """Weights that stay in host memory: the input's, and those that the profile's options keep there."""
    sampling: SamplingDefaults = SamplingDefaults()
    """The file's own defaults."""


class Inspected(Message, frozen=True, kw_only=True):
    """The file is complete and llama.cpp knows it."""

    model: str
    facts: ModelFacts
    number: int = 0
    """The question's."""


class InspectFailed(Message, frozen=True, kw_only=True):
    """The file cannot be served."""

    model: str
    message: str
    number: int = 0
    """The question's."""


class Prepared(Message, frozen=True, kw_only=True):
    """A job is ready for the engine."""

    job: str
    attempt: int
    tokens: list[int]
    resume_tokens: list[int] = []
    """What earlier attempts delivered, in this file's vocabulary."""
    texts: list[list[int]] = []
    """Of an Embed or Rerank job, instead of `tokens`."""
    constraint: Grammar | None = None
    """The job's, checked and as GBNF."""
    max_tokens: int
    """Clamped to what the context leaves."""
    vocab_fingerprint: str
    format: str = ""
    thinking_open: bool = False
    shown: list[int] = []
    """Control tokens whose text belongs to the answer."""
    sampling: Sampling | None = None
    """The job's, filled up with the profile's and the file's defaults; None: as the job says."""


class PrepHello(Message, frozen=True, kw_only=True):
    """The prep process is up."""

    pid: int
    incarnation: str
    build: str


ToPrep = Inspect | Prepare | Stop
FromPrep = PrepHello | Inspected | InspectFailed | Prepared | Rendered | Failed
