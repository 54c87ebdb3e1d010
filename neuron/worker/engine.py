"""What the loop needs of an engine: the contract of llama_engine and of the tests' fake.

    Engine ──load──► Model ──new_sampler──► Sampler        EngineError
                       │ decode(chunks)        │           ├── LoadError         nothing of the model stays
                       │                       │           │   └── OutOfMemory   the same, and the file is not to blame
                       │ share, forget         └─ sample   ├── InvalidBatch      these sequences are at fault
                       └ save, restore                     └── DeviceLost        the process is to end

`Engine.load`, `Model.warm_up`, the last saves of a model and `Model.close` run beside the loop, in the loader's thread,
and never on a model that the loop uses at the same time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from common.engine_options import BATCH_TOKENS, EngineOptions
from common.errors import HelexaError
from common.messages import Grammar, TokenLogprob
from neuron.worker.sampling import Stage

CHUNK_TOKENS = BATCH_TOKENS
"""Rows of one decode call at most, unless a model's profile says otherwise."""


class EngineError(HelexaError):
    """The engine cannot do what it was asked to."""


class LoadError(EngineError):
    """A model cannot be loaded; the text is what decided it."""


class OutOfMemory(LoadError):
    """The device or the host has less free than the model takes; another time or place may have more."""


class InvalidBatch(EngineError):
    """The engine refuses this batch and has kept nothing of it."""


class DeviceLost(EngineError):
    """The device or the engine's own state is beyond repair; only a new process helps."""


class DecodeResult(Enum):
    """How a decode call ended that was not refused."""

    DONE = auto()
    NO_ROOM = auto()
    """No cells for so many tokens; nothing was kept."""


class MemoryKind(Enum):
    """Where a sequence's memory can be cut, so that another one continues from there."""

    CELLS = auto()
    """Anywhere: a cell for each token."""
    WINDOW = auto()
    """Where the last window of tokens is still there: at the end, and a little before it."""
    STATE = auto()
    """At the end only: recurrent layers keep one state, which has seen all tokens."""


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence."""

    sequence: int
    position: int
    """Of the first token in its sequence."""
    tokens: list[int]
    wants_logits: bool
    """Of the last token."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself."""

    build: str
    backend: str
    devices: list[str]


class Sampler(Protocol):
    """Chooses the next token of one sequence, and remembers what was chosen."""

    def sample(self, chunk: int) -> int:
        """Return the token that follows the `chunk`-th chunk of the last decode, and count it as chosen."""

    def close(self) -> None:
        """Free it."""


class Model(Protocol):
    """A model in the device's memory, with its KV cells. Sizes in MiB, as the engine accounts for them."""

    vocabulary: int
    kv_tokens: int
    weights_mb: int
    kv_mb: int
    memory_mb: int
    """Weights, KV and compute buffers."""
    kind: MemoryKind
    sequences: int
    """Numbers of sequences are below this; more than `parallel`, so that idle ones can stay."""
    state_key: str
    """What saved states depend on: the file, KV types, layout."""
    batch_tokens: int
    """Rows of one decode call at most."""
    in_force: dict[str, str]
    """Options as the engine has them in force, under the profile's names."""
    host_mb: int
    """MiB of it in host memory, where the device has its own; not part of the other figures."""
    mapped_mb: int
    """Of the weights, what is the file itself, mapped into memory."""
    attention_share: float
    """What attention over one more cell adds to computing a token, as a share of that; 0 if memory is not of cells."""

    def warm_up(self) -> None:
        """Run one token, so that compiling kernels and touching weights is not the first request's to wait for."""

    def decode(self, chunks: Sequence[Chunk]) -> DecodeResult:
        """Compute the chunks; on return the device is done. Raises InvalidBatch, DeviceLost."""

    def new_sampler(
        self, stages: Sequence[Stage], prompt: list[int], output: list[int], constraint: Grammar | None = None
    ) -> Sampler:
        """Return a sampler that has already seen prompt and output, and keeps to a constraint."""

    def likelihoods(self, chunk: int, token: int, count: int) -> TokenLogprob:
        """Return the log-probability of the token after a chunk of the last decode, and the `count` likeliest."""

    def piece(self, token: int, *, is_shown: bool = False) -> bytes:
        """Return the token's text, which may end inside a character; empty for control tokens unless `is_shown`."""

    def is_end(self, token: int) -> bool:
        """Say whether the token ends the answer."""

    def forget(self, sequence: int) -> None:
        """Free the sequence's cells, but for those that others hold too."""

    def can_cut(self, sequence: int, length: int) -> bool:
        """Say whether another sequence can continue from the first `length` tokens of this one, fewer than all."""

    def share(self, source: int, target: int, start: int, end: int) -> bool:
        """Let `target`, which has `start` tokens, hold the cells of source's tokens up to `end` too.

        False: it could not be done, and what `target` holds is of no use.
        """

    def save(self, sequence: int, start: int, end: int) -> bytearray | None:
        """Return the state of tokens start … end−1, which stays valid after `forget`; None if there is none.

        A memory that is not of cells is saved whole.
        """

    def restore(self, sequence: int, state: bytearray, start: int, end: int) -> bool:
        """Append saved tokens, of which those before the sequence's end, `start`, are left out; False if refused."""

    def close(self) -> None:
        """Free the model."""


class Embedder(Protocol):
    """A model loaded for vectors or scores."""

    vocabulary: int
    kv_tokens: int
    """Of all texts of a batch."""
    weights_mb: int
    kv_mb: int
    memory_mb: int
    kind: MemoryKind
    state_key: str
    sequences: int
    """Texts of a batch at most."""
    is_ranking: bool
    """Whether it gives scores."""
    in_force: dict[str, str]
    """Options as the engine has them in force."""
    host_mb: int
    """MiB of it in host memory, where the device has its own."""
    mapped_mb: int
    """Of the weights, what is the file itself, mapped into memory."""

    def warm_up(self) -> None:
        """Run one token."""

    def compute(self, texts: Sequence[list[int]]) -> list[bytes] | list[float]:
        """Return each text's vector of length 1 as little-endian floats, or its score.

        Raises InvalidBatch, DeviceLost.
        """

    def close(self) -> None:
        """Free the model."""


class Engine(Protocol):
    """Owns the device."""

    def facts(self) -> EngineFacts:
        """Describe build and devices, without touching the device's memory."""

    def load(
        self,
        path: str,
        *,
        kv_tokens: int,
        parallel: int,
        idle: int,
        options: EngineOptions,
        progress: Callable[[float], bool],
        devices: Sequence[int] = (),
    ) -> Model:
        """Load a model for `parallel` running and about `idle` other sequences. Raises LoadError.

        `progress` takes 0 to 1 and returns False to give up. `devices`: those of this process that share it evenly;
        none: the first one.
        """

    def load_embedder(
        self,
        path: str,
        *,
        tokens: int,
        options: EngineOptions,
        progress: Callable[[float], bool],
        devices: Sequence[int] = (),
    ) -> Embedder:
        """Load a model for vectors or scores of texts of up to `tokens`; as `load`."""

    def device_memory(self) -> tuple[int, int] | None:
        """Return MiB free and in total of all devices together, None where that is the host's business."""

    def close(self) -> None:
        """Free what belongs to no model."""
