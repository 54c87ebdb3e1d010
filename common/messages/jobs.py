"""Jobs, and the events of their answers."""

from typing import Any, Literal

import msgspec

from common.errors import Code
from common.messages.base import Message, Part


class Chat(Part, frozen=True, kw_only=True, tag="chat"):
    """Messages for the model's chat template, as the client wrote them."""

    messages: list[dict[str, Any]]
    template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    """Functions in OpenAI's form, as templates want them."""
    tool_choice: Literal["auto", "required"] = "auto"
    """`required`: the answer is a call, or several."""
    tool_name: str | None = None
    """With `required`: of this function."""
    parallel_tool_calls: bool = True


class Text(Part, frozen=True, kw_only=True, tag="text"):
    """A prompt that goes to the model as it is."""

    text: str
    add_special: bool = True
    """Add BOS where the model wants it."""
    parse_special: bool = True
    """Read the text of control tokens as those tokens."""


class TokenIds(Part, frozen=True, kw_only=True, tag="token-ids"):
    """A prompt that is already tokenised."""

    ids: list[int]


class Snippet(Part, frozen=True, kw_only=True):
    """A piece of another file, which stands before what is to be filled in."""

    text: str
    filename: str = ""


class Infill(Part, frozen=True, kw_only=True, tag="infill"):
    """A gap between two texts, for a model with tokens for that."""

    prefix: str
    suffix: str
    prompt: str = ""
    """The end of the text before the gap, for itself: `prefix` stays the same while it is being typed."""
    extra: list[Snippet] = []
    """Of the first ones so many are left out that the rest fits."""
    field: str = "suffix"
    """The request's field; errors name it."""


class Sampling(Part, frozen=True, kw_only=True):
    """How the next token is chosen. None: the model's own default, else llama.cpp's."""

    temperature: float | None = None
    """0 is greedy."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    """Token id → added to its logit."""
    repeat_last_n: int | None = None
    """Tokens that the penalties look back at; -1: the whole context."""
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: int | None = None
    """1 or 2: the version to use instead of top_k and the like."""
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    ignore_eos: bool = False
    """Never choose a token that ends the answer."""
    stop: list[str] = []
    """Strings that end the answer; they are not part of it."""


class Embed(Part, frozen=True, kw_only=True, tag="embed"):
    """Texts to turn into vectors, one each."""

    inputs: list[Text | TokenIds]


class Rerank(Part, frozen=True, kw_only=True, tag="rerank"):
    """Documents to score by how well they answer the query."""

    query: str
    documents: list[str]


class Grammar(Part, frozen=True, kw_only=True, tag="grammar"):
    """Output in the words of a GBNF grammar, whose first rule is `root`."""

    gbnf: str
    triggers: list[str] = []
    """The grammar begins after the first of these texts to appear in the output; none: at the first token."""


class JsonSchema(Part, frozen=True, kw_only=True, tag="json-schema"):
    """Output that is JSON by a schema."""

    schema: dict[str, Any]
    triggers: list[str] = []


class JsonObject(Part, frozen=True, kw_only=True, tag="json-object"):
    """Output that is any JSON object."""

    triggers: list[str] = []


class JobKey(msgspec.Struct, frozen=True, array_like=True):
    """One attempt at one job."""

    job: str
    attempt: int


class Job(Part, frozen=True, kw_only=True):
    """One sequence to generate. `n` > 1 is n jobs with one group."""

    id: str
    """Random, 128 bit."""
    attempt: int
    """Raised by the gateway at each re-submission; every event carries it."""
    model: str
    request_id: str
    input: Chat | Text | TokenIds | Infill | Embed | Rerank
    sampling: Sampling = Sampling()
    constraint: Grammar | JsonSchema | JsonObject | None = None
    constraint_field: str = "response_format"
    """The request's field the constraint came from; errors name it."""
    logprobs: int | None = None
    """Tell each token's log-probability, and those of so many likeliest ones; None: tell none."""
    max_tokens: int | None = None
    """None: up to the model's context. Clamped to what the context leaves."""
    budget_ms: int | None = None
    """Time for queue, load and prefill, counted on the receiver's clock; None: no limit."""
    principal: str = ""
    """Who asks: a key id, else the client's address."""
    priority: int = 100
    """Jobs of a higher number wait until none of a lower one waits for the same model."""
    group: str | None = None
    prefix_chain: list[str] = []
    """Hashes of the growing prompt; a routing hint only."""
    resume_tokens: list[int] = []
    """Output tokens that earlier attempts delivered, as ids of `resume_vocabulary`."""
    resume_vocabulary: str = ""
    """Fingerprint; where the file has another one, `resume_text` is tokenised instead."""
    resume_text: str = ""
    """What those tokens said."""
    strikes: int = 0
    """Workers that ended while they computed this job alone, as the last Failed has told."""
    shared_deaths: int = 0
    """Workers that ended while they computed it among others; the same."""
    answer: Literal["generated", "prompt"] = "generated"
    """`prompt`: the prompt itself as text and tokens, in one Rendered; no model is loaded for it."""


class Likelihood(msgspec.Struct, frozen=True, array_like=True):
    """One token and its natural log-probability, before any sampling setting."""

    text: bytes
    """May be a part of a character."""
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A chosen token beside the likeliest ones at its place, likeliest first."""

    chosen: Likelihood
    top: list[Likelihood]


class TokenItem(msgspec.Struct, frozen=True, array_like=True):
    """What one job produced in one step, or in several while its gateway was held."""

    job: str
    attempt: int
    at: int
    """Index of the first id in the job's output, resume tokens included."""
    text: str
    """May be empty while half a character or half a stop string is held back."""
    ids: list[int]
    logprobs: list[TokenLogprob] = []
    """One for each id, if the job asks for them."""


class StartedItem(Part, frozen=True, kw_only=True):
    """The job has been validated, rendered, counted and admitted."""

    job: str
    attempt: int
    prompt_tokens: int
    cached_tokens: int = 0
    max_tokens: int
    """Clamped to what the context leaves."""
    vocab_fingerprint: str = ""
    resumed: int = 0
    """Output tokens of earlier attempts, in this vocabulary; the first new one is numbered so."""
    format: str = ""
    """Family of the template's reasoning and tool calls (common/formats/family.py); "" is plain text."""
    thinking_open: bool = False


class Timings(Part, frozen=True, kw_only=True):
    """Where a job's time went, in milliseconds, and its counts, under llama-server's names."""

    queue_ms: float = 0.0
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class EndedItem(Part, frozen=True, kw_only=True):
    """The job's one good end."""

    job: str
    attempt: int
    total: int
    """Output tokens over all attempts: the stream is complete when the gateway holds as many."""
    reason: Literal["stop", "stop_sequence", "length"]
    stop_sequence: str | None = None
    prompt_tokens: int
    cached_tokens: int = 0
    timings: Timings = Timings()
    vectors: list[bytes] = []
    """Of an Embed job, one an input, in order: little-endian 32 bit floats of length 1."""
    scores: list[float] = []
    """Of a Rerank job, one a document, in order: the model's relevance."""


class FailedItem(Part, frozen=True, kw_only=True):
    """The job's one bad end."""

    job: str
    attempt: int
    code: Code
    message: str
    param: str | None = None
    retriable: bool = False
    retry_after_ms: int | None = None
    strikes: int = 0
    """What is held against the job now; its next attempt carries it."""
    shared_deaths: int = 0


class RenderedItem(Part, frozen=True, kw_only=True):
    """The good end of a job that only asked for its prompt."""

    job: str
    attempt: int
    text: str
    """As the template made it; of token ids, their text."""
    tokens: list[int]
    template: str = ""
    """Source of the model's chat template."""
    bos: str = ""
    eos: str = ""


class Started(Message, frozen=True, kw_only=True):
    """Jobs that begin; their HTTP status is decided."""

    items: list[StartedItem]


class Tokens(Message, frozen=True, kw_only=True):
    """New output of all of one gateway's jobs in one engine step."""

    items: list[TokenItem]


class Ended(Message, frozen=True, kw_only=True):
    """Jobs that are complete."""

    items: list[EndedItem]


class Failed(Message, frozen=True, kw_only=True):
    """Jobs that end with an error."""

    items: list[FailedItem]


class Rendered(Message, frozen=True, kw_only=True):
    """Prompts that were asked for. From prep to the supervisor, and from there to the gateway."""

    items: list[RenderedItem]
