"""What a supervisor says to a gateway or neuronctl, beside Started, Tokens, Ended, Failed, Rendered and NodeState."""

from typing import Literal

from common.errors import Code
from common.messages.base import Message, Part
from common.messages.jobs import Ended, Failed, Rendered, Started, Tokens
from common.messages.state import DeviceState, LifecycleEvent, ModelState, NodeState


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


class Setting(Part, frozen=True, kw_only=True):
    """One thing that a model runs with."""

    name: str
    value: str
    why: str
    device: str = ""
    """Where; "": everywhere, or not loaded."""


class EffectiveReply(Message, frozen=True, kw_only=True):
    """Answer to Effective."""

    request: str
    model: str
    settings: list[Setting]


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


class JobProgress(Part, frozen=True, kw_only=True):
    """How far a worker has come with a job."""

    job: str
    phase: Literal["waiting", "prefill", "decode"]
    prompt_n: int
    """Tokens of its prompt."""
    done_n: int = 0
    """Of them in KV cells, or computed."""
    tokens: int = 0
    """Of its answer, over all attempts."""


class WorkerMemory(Part, frozen=True, kw_only=True):
    """The worker's own view of its memory, in MiB."""

    device: str
    process_mb: int
    """Resident memory of the worker process."""
    device_free_mb: int | None = None
    device_total_mb: int | None = None
    models: list[ModelMemory] = []
    jobs: list[JobProgress] = []
    tokens: int = 0
    """Generated in this life of the worker."""


class MemoryReply(Message, frozen=True, kw_only=True):
    """Answer to Memory."""

    request: str
    workers: list[WorkerMemory]


class EventsReply(Message, frozen=True, kw_only=True):
    """Answer to ReadEvents, oldest first."""

    request: str
    incarnation: str
    """Cursors count within one life of the neuron."""
    events: list[LifecycleEvent] = []


class LogReply(Message, frozen=True, kw_only=True):
    """Answer to ReadLog, oldest first."""

    request: str
    incarnation: str
    """Lines are numbered within one life of the neuron."""
    cursor: int
    """Number of the last line."""
    lines: list[str] = []


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
    | HealthReply | ModelsReply | EffectiveReply | VersionReply | MemoryReply | EventsReply | LogReply
    | Progress | Done | Refused
)  # fmt: skip
