"""Every message of the bus, once.

Who speaks to whom (docs/protocol.md is checked against this file by a test):

    gateway, neuronctl ──ToNeuron──► supervisor ──ToWorker──► worker
                       ◄─FromNeuron─            ◄─FromWorker─
                                     supervisor ──ToPrep────► prep
                                                ◄─FromPrep──

Messages are msgpack maps, so a field can be added: unknown fields are ignored, missing ones take their default. Only
the items of a token batch are arrays, because they are many and small. A message that carries several things of a kind
always carries a list, also for one. No wall-clock time crosses the bus; durations are milliseconds.
"""

from typing import Any, Literal

import msgspec

from common.catalogue import Profile
from common.errors import Code

PROTOCOL_VERSION = (1, 0)
"""Major, minor. Another major version is refused by name; a minor one only adds fields and kinds."""


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag=_kebab):
    """Base of all messages; `kind` on the wire is the class name in kebab case."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what messages are made of."""


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    input: Chat | Text | TokenIds | Embed | Rerank
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
    group: str | None = None
    prefix_chain: list[str] = []
    """Hashes of the growing prompt; a routing hint only."""
    resume_tokens: list[int] = []
    """Output tokens that earlier attempts delivered, as ids of `resume_vocabulary`."""
    resume_vocabulary: str = ""
    """Fingerprint; where the file has another one, `resume_text` is tokenised instead."""
    resume_text: str = ""
    """What those tokens said."""
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


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ReplicaStatus = Literal["loading", "loaded", "unloading", "recovering", "failed"]
ModelStatus = Literal["unloaded", "loading", "loaded", "unloading", "recovering", "failed"]


class DeviceState(Part, frozen=True, kw_only=True):
    """One device and the worker that owns it. Memory in MiB; None is unknown, never 0."""

    uuid: str
    name: str
    kind: Literal["cuda", "cpu"]
    state: str
    """State of the worker (docs/states.md), or `unavailable`."""
    reason: str | None = None
    """Why it does not serve, and the remedy."""
    memory_mb: int | None = None
    reserved_mb: int = 0
    """Promised to models by the ledger."""
    used_mb: int | None = None
    utilization: float | None = None
    """0 to 1."""
    temperature_c: float | None = None
    power_w: float | None = None
    draining: bool = False
    worker_pid: int | None = None
    restarts: int = 0
    paused_for_s: float | None = None
    """Left of a pause when this state was made; None: it is not paused, or until an admin resumes it."""
    steps: int = 0
    cycles: int = 0
    """Loads that its present worker has completed."""
    phase: str | None = None
    backend: str | None = None
    """llama.cpp backend that the worker really uses, for example CPU or CUDA."""


class ReplicaState(Part, frozen=True, kw_only=True):
    """A model on a device."""

    device: str
    status: ReplicaStatus
    memory_mb: int | None = None
    progress: float | None = None
    """0 to 1 while loading."""
    running: int = 0
    load_s: float | None = None
    makes_room_for: str | None = None
    """Why it is on its way out: another model needs its memory."""


class ModelState(Part, frozen=True, kw_only=True):
    """A model this neuron serves or could serve."""

    id: str
    status: ModelStatus
    reason: str | None = None
    """Why it failed."""
    replicas: list[ReplicaState] = []
    running: int = 0
    queued: int = 0
    """Waiting for a slot or for the model, being rendered included."""
    context: int | None = None
    kv_tokens: int | None = None
    parallel: int | None = None
    memory_mb: int | None = None
    """MiB reserved a replica, or estimated for one."""
    feasible: bool = True
    """False: no device of this host can hold it, see reason."""
    draining: bool = False
    capabilities: list[str] = []
    profile: str = ""
    """Fingerprint of the profile in force."""
    pinned: bool = False
    """Never unloaded to make room."""
    residency_priority: int = 100
    """Class: it makes room only for its own class and higher ones."""
    waits_for_room: bool = False
    """Other models have to make room before it can be loaded."""
    service_ms: int | None = None
    """Measured time that a request holds its slot; None: none has ended yet."""
    unloaded_because: str | None = None
    """Of the last unload that nobody asked for."""
    prefixes: list[str] = []
    """Hashes of prompts whose KV is resident, the latest last: a job whose prefix chain ends in one goes here."""


class NodeState(Message, frozen=True, kw_only=True):
    """What a neuron is and holds. Pushed whole on Hello and every 10 s, else only what changed.

    A receiver applies a partial state only if its `seq` is the next one; after a gap it says Hello again.
    """

    incarnation: str
    seq: int
    full: bool
    name: str
    version: str
    state: Literal["serving", "draining"] = "serving"
    build: str | None = None
    """llama.cpp's own build, as the workers report it."""
    devices: list[DeviceState] = []
    models: list[ModelState] = []
    gone: list[str] = []
    """Models of an earlier state that no longer exist."""
    aliases: dict[str, str] = {}


# ── gateway, neuronctl → supervisor ─────────────────────────────────────────────────────────────────────────────────


class Eviction(Part, frozen=True, kw_only=True):
    """A gateway's eviction settings; a neuron's own win."""

    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: int = 50


class Hello(Message, frozen=True, kw_only=True):
    """Opens a connection; answered with a full NodeState, or Refused."""

    version: tuple[int, int]
    incarnation: str
    role: Literal["gateway", "admin"]
    name: str = ""
    eviction: Eviction | None = None


class Beat(Message, frozen=True, kw_only=True):
    """A gateway is alive, and these are the jobs it still wants. Every second; 5 s of silence abort its jobs."""

    incarnation: str
    jobs: list[JobKey] = []


class Submit(Message, frozen=True, kw_only=True):
    """Jobs to run."""

    jobs: list[Job]
    profile: Profile | None = None
    """Of their model, where the sender has not seen the neuron tell of it."""


class Abort(Message, frozen=True, kw_only=True):
    """Jobs nobody waits for any more. Idempotent; overtakes queued work; not answered."""

    jobs: list[JobKey]


class Claim(Message, frozen=True, kw_only=True):
    """A gateway wants to load a model that nobody has on the neuron `choice`; answered with the first such claim."""

    request: str
    model: str
    """Of a further replica: the model's id, `#`, and the replica's number."""
    choice: str
    refused: list[str] = []
    """Neurons that cannot take it; a claim on record that names one of them is replaced."""


class Status(Message, frozen=True, kw_only=True):
    """Ask for the full NodeState and the running jobs."""

    request: str


class Discover(Message, frozen=True, kw_only=True):
    """Ask which devices there are, also those that are not served."""

    request: str


class Health(Message, frozen=True, kw_only=True):
    """Ask whether the neuron serves, and if not, why."""

    request: str


class Models(Message, frozen=True, kw_only=True):
    """Ask for the models this neuron serves or could serve."""

    request: str


class Version(Message, frozen=True, kw_only=True):
    """Ask for the versions of neuron, protocol and llama.cpp."""

    request: str


class Load(Message, frozen=True, kw_only=True):
    """Load a model; answered when it is loaded. `device` None: the device with the most free memory."""

    request: str
    model: str
    profile: Profile | None = None
    """The gateway's catalogue is the source; None: the neuron's own profile."""
    device: str | None = None
    may_evict: bool = True
    """False: load it only where nothing has to give way."""


class Unload(Message, frozen=True, kw_only=True):
    """Finish the model's jobs, then unload it; answered when it is gone. `device` None: every replica."""

    request: str
    model: str
    device: str | None = None


class Pin(Message, frozen=True, kw_only=True):
    """Never unload the model to make room. A later Unload is still obeyed."""

    request: str
    model: str


class Unpin(Message, frozen=True, kw_only=True):
    """End a pin, also one of the profile's until the neuron restarts."""

    request: str
    model: str


class ClearCache(Message, frozen=True, kw_only=True):
    """Forget KV that belongs to no running job. `model` None: all."""

    request: str
    model: str | None = None


class Memory(Message, frozen=True, kw_only=True):
    """Ask the workers themselves what they hold."""

    request: str


class Drain(Message, frozen=True, kw_only=True):
    """Take no new jobs: on a MODEL (then unload it), a DEVICE, or (target None) the NODE. Answered when empty."""

    request: str
    scope: Literal["model", "device", "node"]
    target: str | None = None


class Undrain(Message, frozen=True, kw_only=True):
    """End a drain."""

    request: str
    scope: Literal["model", "device", "node"]
    target: str | None = None


class Pause(Message, frozen=True, kw_only=True):
    """Finish a device's jobs, unload its models, end its worker and leave it alone, also after a restart of the neuron.

    Answered when the device is free.
    """

    request: str
    device: str
    for_s: float | None = None
    """None: until Resume."""


class Resume(Message, frozen=True, kw_only=True):
    """End a pause, and load again what the device held."""

    request: str
    device: str


class RestartWorker(Message, frozen=True, kw_only=True):
    """End the device's worker and start another; its models are loaded again. Running jobs fail, retriable."""

    request: str
    device: str


ToNeuron = (
    Hello | Beat | Submit | Abort | Claim | Status | Discover | Health | Models | Version
    | Load | Unload | Pin | Unpin | ClearCache | Memory | Drain | Undrain | Pause | Resume | RestartWorker
)  # fmt: skip


# ── supervisor → gateway, neuronctl (with Started, Tokens, Ended, Failed, Rendered and NodeState) ───────────────────


class HelloWanted(Message, frozen=True, kw_only=True):
    """A message came from a peer that has not said Hello (a restarted neuron knows nobody)."""


class Claimed(Message, frozen=True, kw_only=True):
    """The first claim on record: everybody loads `model` on the neuron `choice`."""

    request: str
    model: str
    choice: str


class JobRow(Part, frozen=True, kw_only=True):
    """One job as an operator sees it."""

    job: str
    attempt: int
    request_id: str
    model: str
    state: Literal["preparing", "queued", "running"]
    device: str | None = None
    age_ms: int
    principal: str = ""


class StatusReply(Message, frozen=True, kw_only=True):
    """Answer to Status."""

    request: str
    state: NodeState
    jobs: list[JobRow] = []
    peers: int = 0
    undecodable: int = 0
    """Frames since the start that were no messages."""


class DiscoverReply(Message, frozen=True, kw_only=True):
    """Answer to Discover."""

    request: str
    devices: list[DeviceState]


class HealthReply(Message, frozen=True, kw_only=True):
    """Answer to Health."""

    request: str
    status: Literal["ok", "impaired", "degraded"]
    reasons: list[str] = []


class ModelsReply(Message, frozen=True, kw_only=True):
    """Answer to Models."""

    request: str
    models: list[ModelState]


class VersionReply(Message, frozen=True, kw_only=True):
    """Answer to Version."""

    request: str
    version: str
    protocol: tuple[int, int]
    build: str | None = None


class ModelMemory(Part, frozen=True, kw_only=True):
    """What one model holds in a worker, as llama.cpp accounts for it."""

    model: str
    weights_mb: int
    kv_mb: int
    kv_tokens: int
    kv_used: int
    """Cells that hold a token."""
    sequences: int
    """That run."""
    idle: int = 0
    """Sequences that stay for new prompts to continue from."""
    host_mb: int = 0
    """Idle sequences in host memory."""


class WorkerMemory(Part, frozen=True, kw_only=True):
    """The worker's own view of its memory, in MiB."""

    device: str
    process_mb: int
    """Resident memory of the worker process."""
    device_free_mb: int | None = None
    device_total_mb: int | None = None
    models: list[ModelMemory] = []


class MemoryReply(Message, frozen=True, kw_only=True):
    """Answer to Memory."""

    request: str
    workers: list[WorkerMemory]


class Progress(Message, frozen=True, kw_only=True):
    """An admin request is under way."""

    request: str
    text: str
    fraction: float | None = None


class Done(Message, frozen=True, kw_only=True):
    """An admin request is carried out; `text` says what was done."""

    request: str
    text: str


class Refused(Message, frozen=True, kw_only=True):
    """An admin request, or a Hello (`request` None), is refused or has failed."""

    request: str | None = None
    code: Code
    message: str


FromNeuron = (
    NodeState | Started | Tokens | Ended | Failed | Rendered | HelloWanted | Claimed | StatusReply | DiscoverReply
    | HealthReply | ModelsReply | VersionReply | MemoryReply | Progress | Done | Refused
)  # fmt: skip


# ── supervisor → worker ─────────────────────────────────────────────────────────────────────────────────────────────


class LoadModel(Message, frozen=True, kw_only=True):
    """Load a GGUF and make its context."""

    model: str
    path: str
    context: int
    """Tokens one request may use."""
    kv_tokens: int
    parallel: int
    is_embedding: bool = False
    """Load it for vectors or scores; a model generates, or it does this."""
    idle_sequences: int = 16
    """Beside the running ones; they stay for new prompts to continue from."""
    host_cache_mb: int = 0
    """MiB of host memory for idle sequences of all models of this worker."""


class UnloadModel(Message, frozen=True, kw_only=True):
    """Free a model; its jobs have ended."""

    model: str


class Task(Part, frozen=True, kw_only=True):
    """A job as the engine runs it: rendered, tokenised, counted."""

    job: str
    attempt: int
    gateway: str
    """Incarnation of the gateway that gets the events."""
    model: str
    request_id: str
    tokens: list[int]
    """Prompt; resume tokens not included."""
    resume_tokens: list[int] = []
    texts: list[list[int]] = []
    """Of an Embed or Rerank job, instead of `tokens`: what is computed for one vector or score each."""
    sampling: Sampling = Sampling()
    constraint: Grammar | None = None
    logprobs: int | None = None
    max_tokens: int
    """Over all attempts; prompt plus max_tokens fits the context."""
    shown: list[int] = []
    """Control tokens whose text belongs to the answer: they are markers of reasoning or tool calls."""
    queue_ms: float = 0.0
    started: StartedItem
    """Sent as it is when the sequence has its slot, `cached_tokens` filled in."""


class Run(Message, frozen=True, kw_only=True):
    """Tasks to run; never more of a model than its slots."""

    tasks: list[Task]


class AbortTasks(Message, frozen=True, kw_only=True):
    """Tasks to end without any event."""

    jobs: list[JobKey]


class Hold(Message, frozen=True, kw_only=True):
    """A gateway takes no more for now: merge its tokens per job."""

    gateway: str


class Go(Message, frozen=True, kw_only=True):
    """Send what was merged, and go on."""

    gateway: str


class ClearModelCache(Message, frozen=True, kw_only=True):
    """Forget KV that belongs to no running task."""

    request: str
    model: str | None = None


class ReportMemory(Message, frozen=True, kw_only=True):
    """Answer with a MemoryView."""

    request: str


class Stop(Message, frozen=True, kw_only=True):
    """Free everything and exit with status 0. Also for prep."""


ToWorker = LoadModel | UnloadModel | Run | AbortTasks | Hold | Go | ClearModelCache | ReportMemory | Stop


# ── worker → supervisor (with Started, Tokens, Ended, Failed) ───────────────────────────────────────────────────────

Phase = Literal["starting", "loading", "warming", "prefill", "decode", "idle"]


class WorkerHello(Message, frozen=True, kw_only=True):
    """The worker is up and has verified its device."""

    pid: int
    incarnation: str
    """As the supervisor gave it on the command line."""
    build: str
    backend: str
    devices: list[str]
    """Descriptions of the devices llama.cpp sees; empty on a CPU device."""


class Pulse(Message, frozen=True, kw_only=True):
    """The engine loop itself has come round: its step counter and what it does now."""

    steps: int
    phase: Phase


class LoadProgress(Message, frozen=True, kw_only=True):
    """How much of a model's file is read, 0 to 1."""

    model: str
    progress: float


class Loaded(Message, frozen=True, kw_only=True):
    """A model is ready for tasks."""

    model: str
    memory_mb: int
    """Weights, KV and compute buffers as llama.cpp accounts for them."""
    context: int
    kv_tokens: int
    parallel: int


class LoadFailed(Message, frozen=True, kw_only=True):
    """A model could not be loaded; nothing of it stays."""

    model: str
    code: Code
    message: str


class Unloaded(Message, frozen=True, kw_only=True):
    """A model is gone and its memory released."""

    model: str


class CacheCleared(Message, frozen=True, kw_only=True):
    """Answer to ClearModelCache."""

    request: str
    sequences: int


class MemoryView(Message, frozen=True, kw_only=True):
    """Answer to ReportMemory."""

    request: str
    memory: WorkerMemory


FromWorker = (
    WorkerHello | Pulse | LoadProgress | Loaded | LoadFailed | Unloaded | CacheCleared | MemoryView
    | Started | Tokens | Ended | Failed
)  # fmt: skip

TOKENS_FRAME = b"T"
"""Kind frame of a worker's Tokens: the supervisor relays its payload without decoding it."""
EVENT_FRAME = b"E"
"""Kind frame of every other message of a worker."""


# ── supervisor ↔ prep ───────────────────────────────────────────────────────────────────────────────────────────────


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
