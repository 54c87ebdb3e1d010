"""What a supervisor and its prep process say to each other."""

from common.messages.base import Message, Part
from common.messages.jobs import Failed, Grammar, Job, Rendered
from common.messages.work import Stop


class Inspect(Message, frozen=True, kw_only=True):
    """Read a GGUF's header and vocabulary; answered with Inspected or InspectFailed."""

    model: str
    path: str


class Prepare(Message, frozen=True, kw_only=True):
    """Render, tokenise and check a job; answered with Prepared (or Rendered, if that is its answer) or Failed."""

    job: Job
    path: str
    context: int
    """Tokens one request may use."""


class ModelFacts(Part, frozen=True, kw_only=True):
    """What a GGUF's header tells. Sizes in bytes."""

    architecture: str
    name: str
    file_bytes: int
    context_train: int
    kv_bytes_per_token: int
    layers: int
    embedding: int
    vocabulary: int
    capabilities: list[str]
    vocab_fingerprint: str
    format: str = ""


class Inspected(Message, frozen=True, kw_only=True):
    """The file is complete and llama.cpp knows it."""

    model: str
    facts: ModelFacts


class InspectFailed(Message, frozen=True, kw_only=True):
    """The file cannot be served."""

    model: str
    message: str


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


class PrepHello(Message, frozen=True, kw_only=True):
    """The prep process is up."""

    pid: int
    incarnation: str
    build: str


ToPrep = Inspect | Prepare | Stop
FromPrep = PrepHello | Inspected | InspectFailed | Prepared | Rendered | Failed
