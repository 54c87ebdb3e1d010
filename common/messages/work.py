"""What a supervisor and its worker say to each other."""

from typing import Literal

from common.engine_options import EngineOptions
from common.errors import Code
from common.messages.base import Message, Part
from common.messages.jobs import Ended, Failed, Grammar, JobKey, Sampling, Started, StartedItem, Tokens
from common.messages.replies import WorkerMemory


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
    devices: list[int] = []
    """Which of the worker's devices, counted from 0, hold equal shares of it; empty: the only one."""
    engine: EngineOptions = EngineOptions()
    """The profile's, `n_gpu_layers` as it was chosen."""


class UnloadModel(Message, frozen=True, kw_only=True):
    """Free a model; its jobs have ended."""

    model: str


class ShareHostMemory(Message, frozen=True, kw_only=True):
    """Keep no more than this in host memory, of all models' idle sequences together."""

    mb: int


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


ToWorker = (
    LoadModel | UnloadModel | ShareHostMemory | Run | AbortTasks | Hold | Go | ClearModelCache | ReportMemory | Stop
)


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


class LaneLoad(Part, frozen=True, kw_only=True):
    """How busy a model is in its worker."""

    model: str
    sequences: int
    """That hold a slot: the next batch computes tokens of them."""
    kv_used: int
    """KV cells that hold a token, of running and idle sequences."""


class Pulse(Message, frozen=True, kw_only=True):
    """The engine loop itself has come round: its step counter and what it does now."""

    steps: int
    phase: Phase
    tokens: int = 0
    """Generated in this life of the worker."""
    lanes: list[LaneLoad] = []


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
    host_mb: int = 0
    """The same in host memory, where the device has its own."""
    in_force: dict[str, str] = {}
    """Engine options as llama.cpp has them in force."""


class LoadFailed(Message, frozen=True, kw_only=True):
    """A model could not be loaded; nothing of it stays."""

    model: str
    code: Code
    """`no_capacity`: there was less memory than it takes; any other: it is the file, the options or the engine."""
    message: str


class Unloaded(Message, frozen=True, kw_only=True):
    """A model is gone, and its memory with it but for what `kept_mb` says."""

    model: str
    kept_mb: int = 0
    """Device memory in MiB that it took when it was loaded and has not given back, as the driver counts."""


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
