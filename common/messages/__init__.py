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

from common.messages.base import PROTOCOL_VERSION, Message, Part
from common.messages.jobs import (
    Chat,
    Embed,
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    Grammar,
    Infill,
    Job,
    JobKey,
    JsonObject,
    JsonSchema,
    Likelihood,
    Rendered,
    RenderedItem,
    Rerank,
    Sampling,
    Snippet,
    Started,
    StartedItem,
    Text,
    Timings,
    TokenIds,
    TokenItem,
    TokenLogprob,
    Tokens,
)
from common.messages.orders import (
    Abort,
    Beat,
    CancelJobs,
    Claim,
    ClearCache,
    Discover,
    Drain,
    Eviction,
    Health,
    Hello,
    Load,
    Memory,
    Models,
    Pause,
    Pin,
    ReadEvents,
    ReadLog,
    RestartWorker,
    Resume,
    Status,
    Submit,
    ToNeuron,
    Undrain,
    Unload,
    Unpin,
    Version,
)
from common.messages.prep import (
    FromPrep,
    Inspect,
    Inspected,
    InspectFailed,
    ModelFacts,
    Prepare,
    Prepared,
    PrepHello,
    ToPrep,
)
from common.messages.replies import (
    Claimed,
    DiscoverReply,
    Done,
    EventsReply,
    FromNeuron,
    HealthReply,
    HelloWanted,
    JobProgress,
    JobRow,
    LogReply,
    MemoryReply,
    ModelMemory,
    ModelsReply,
    Progress,
    Refused,
    StatusReply,
    VersionReply,
    WorkerMemory,
)
from common.messages.state import (
    DeviceState,
    EventSubject,
    LifecycleEvent,
    ModelState,
    ModelStatus,
    NodeState,
    ReplicaState,
    ReplicaStatus,
)
from common.messages.work import (
    EVENT_FRAME,
    TOKENS_FRAME,
    AbortTasks,
    CacheCleared,
    ClearModelCache,
    FromWorker,
    Go,
    Hold,
    LaneLoad,
    Loaded,
    LoadFailed,
    LoadModel,
    LoadProgress,
    MemoryView,
    Phase,
    Pulse,
    ReportMemory,
    Run,
    Stop,
    Task,
    ToWorker,
    Unloaded,
    UnloadModel,
    WorkerHello,
)
