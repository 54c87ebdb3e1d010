"""An engine without a model: its i-th token is a function of the prompt and i, so a repeat, loss or alteration shows.

The "GGUF" is a small JSON file of knobs, so a test configures its engine by writing the model file. Instant by default.
"""

import ctypes
import os
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from common.engine_options import BATCH_TOKENS, EngineOptions
from common.messages import Grammar, Likelihood, ModelFacts, TokenLogprob
from neuron.prep.vocabulary import Gap, UnusableFile
from neuron.worker.engine import (
    Chunk,
    DecodeResult,
    DeviceLost,
    Embedder,
    EngineFacts,
    InvalidBatch,
    LoadError,
    MemoryKind,
    OutOfMemory,
)
from neuron.worker.sampling import Stage

END = 0
"""The token that ends an answer."""
_ANSWER, _WORD, _TEXT = 100_000, 1_000_000, 2_000_000
"""First ids of answer tokens, of words of prompts, and of the pieces of the knob `text`."""
VOCABULARY = 3_000_000


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a fake model file. `…_at` is an index into an answer, resume tokens included."""

    load_s: float = 0.0
    warm_s: float = 0.0
    token_s: float = 0.0
    """For a step that decodes, however many sequences."""
    prefill_token_s: float = 0.0
    length: int | None = None
    """Tokens of an answer until its end token; None: it never ends by itself."""
    text: str | None = None
    """Every answer, instead of numbers; cut into tokens of `bytes_per_token` bytes."""
    bytes_per_token: int = 1
    context_train: int = 8192
    memory_mb: int = 100
    memory: str = "CELLS"
    """Kind of its memory: CELLS, WINDOW or STATE."""
    window: int = 16
    """Of a memory of that kind."""
    state_bytes_per_token: int = 64
    attention_share: float = 0.0
    refuse_restore: bool = False
    real_kv_tokens: int | None = None
    """Cells there are in truth, where fewer than the engine says."""
    only_for: str = ""
    """A word: what `…_at` does happens only to prompts that contain it."""
    raise_at: int | None = None
    lose_device_at: int | None = None
    segfault_at: int | None = None
    abort_at: int | None = None
    hang_at: int | None = None
    kill_batch_at: int | None = None
    """Die in the step that computes it for a whole batch, not in the choice of one token."""
    exit_at: int | None = None
    killed_once_at: tuple[int, ...] = ()
    """The worker is killed there as by somebody else, once for each; a file beside the model remembers it."""
    markers: str = ""
    """Texts that its chat template contains, by which formats are recognised."""
    oom_at_load: bool = False
    beyond_mb: int = 0
    """Memory of the process that the engine does not account for."""
    keep_mb: int = 0
    """Device memory that an unload does not give back."""
    refuse_load: str = ""
    """Why a load fails, each time."""
    crash_at_load: bool = False
    leave_grandchild: bool = False
    """Its load starts a process that keeps all that this one has open."""
    hang_at_load: bool = False
    ignore_sigterm: bool = False
    crash_prep_for: str = ""
    """A word; the process that tokenises it dies."""


def write_model(path: Path, **knobs: object) -> str:
    """Write a fake model file and return its path."""
    path.write_bytes(msgspec.json.encode(msgspec.convert(knobs, Knobs)))
    return str(path)


def read_knobs(path: str) -> Knobs:
    """Read a fake model file. Raises LoadError for anything else."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Knobs)
    except (OSError, msgspec.DecodeError) as error:
        raise LoadError(f"{Path(path).name}: {error}") from None


def tokenise(text: str) -> list[int]:
    """Return a token for each word; a number of an answer is its own token again."""
    return [_token(word) for word in text.split()]


def _token(word: str) -> int:
    if word.isdigit() and len(word) == 6:
        return int(word)
    return _WORD + zlib.crc32(word.encode()) % 1_000_000


def answer(prompt: Sequence[int], count: int, start: int = 0) -> list[int]:
    """Return the answer tokens start … start+count−1 to a prompt."""
    seed = zlib.crc32(",".join(map(str, prompt)).encode())
    return [_ANSWER + zlib.crc32(f"{seed}:{i}".encode()) % 900_000 for i in range(start, start + count)]


def text_of(ids: Sequence[int]) -> str:
    """Return the text of answer tokens."""
    return "".join(f"{i} " for i in ids)


def open_vocabulary(path: str, options: EngineOptions | None = None) -> "FakeVocabulary":
    """Open a fake model file. Raises UnusableFile for anything else."""
    try:
        return FakeVocabulary(read_knobs(path), Path(path).stem)
    except LoadError as error:
        raise UnusableFile(str(error)) from None


def create_engine(threads: int, kind: str) -> "FakeEngine":
    """Return a fake engine; it takes whatever device it is said to have."""
    return FakeEngine(kind)


class FakeVocabulary:
    """One token for each word; chats are rendered as lines `role: content`."""

    def __init__(self, knobs: Knobs, name: str) -> None:
        self.size = VOCABULARY
        self.chat_template: str | None = (
            "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
            + (f"{{% if false %}}{knobs.markers}{{% endif %}}" if knobs.markers else "")
        )
        self.bos_text = ""
        self.gap: Gap | None = Gap(_WORD - 3, _WORD - 2, _WORD - 1, None)
        self.adds_bos, self.bos = False, -1
        self.eos_text = ""
        self.facts = ModelFacts(
            architecture="fake",
            name=name,
            file_bytes=knobs.memory_mb << 20,
            context_train=knobs.context_train,
            kv_bytes_per_token=1024,
            layers=1,
            embedding=64,
            vocabulary=1000,  # for estimates of memory
            capabilities=["chat", "completion"],
            vocab_fingerprint="fake",
        )
        self._crash_for = knobs.crash_prep_for

    def measure(self, options: EngineOptions) -> ModelFacts:
        """Know it all already."""
        return self.facts

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return a token for each word."""
        if self._crash_for and self._crash_for in text.split():
            os._exit(3)
        return tokenise(text)

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the tokens as numbers."""
        return " ".join(map(str, tokens)).encode()

    def pair(self, query: str, document: str) -> list[int]:
        """Put one after the other."""
        return tokenise(f"{query} {document}")

    def can_parse(self, gbnf: str) -> bool:
        """Take any grammar."""
        return True

    def close(self) -> None:
        """Have nothing to free."""


class FakeEngine:
    """Loads knobs."""

    def __init__(self, kind: str = "cpu") -> None:
        self._kind = kind
        self._free_mb = 1000
        self.loaded_on: list[list[int]] = []
        """For each load, the devices it was told to take."""

    def facts(self) -> EngineFacts:
        """Describe itself."""
        if self._kind == "cpu":
            return EngineFacts("fake 1", "CPU", [])
        return EngineFacts("fake 1", "CUDA", ["CUDA0: fake GPU"])

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
    ) -> "FakeModel":
        """Load a fake model file. Raises LoadError."""
        self.loaded_on.append(list(devices))
        knobs = read_knobs(path)
        if knobs.crash_at_load:
            signal.raise_signal(signal.SIGSEGV)
        if knobs.leave_grandchild and os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        if knobs.hang_at_load:
            _hang()
        if knobs.ignore_sigterm:
            # By libc, since Python sets handlers in the main thread only.
            ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(1))
        ends_at = time.monotonic() + knobs.load_s
        while (left_s := ends_at - time.monotonic()) > 0:
            if not progress(1 - left_s / knobs.load_s):
                raise LoadError("given up")
            time.sleep(min(left_s, 0.02))
        if knobs.refuse_load:
            raise LoadError(knobs.refuse_load)
        if knobs.oom_at_load:
            raise OutOfMemory("out of memory: 1024 MiB wanted, 512 MiB free")
        self._free_mb -= knobs.memory_mb
        return FakeModel(knobs, kv_tokens, parallel, idle, path, self._give_back, options)

    def _give_back(self, memory_mb: int) -> None:
        self._free_mb += memory_mb

    def load_embedder(
        self,
        path: str,
        *,
        tokens: int,
        options: EngineOptions,
        progress: Callable[[float], bool],
        devices: Sequence[int] = (),
    ) -> Embedder:
        """Have none."""
        raise LoadError("the fake engine makes no vectors")

    def device_memory(self) -> tuple[int, int] | None:
        """Return what a GPU of 2000 MiB has left, half of which others hold."""
        return None if self._kind == "cpu" else (self._free_mb, 2000)

    def close(self) -> None:
        """Have nothing to free."""


class Cell:
    """One KV cell."""

    __slots__ = ("token",)

    def __init__(self, token: int) -> None:
        self.token = token


class FakeModel:
    """Keeps what was decoded in its cells, and refuses what does not continue it."""

    def __init__(
        self,
        knobs: Knobs,
        kv_tokens: int,
        parallel: int,
        idle: int,
        path: str,
        give_back: Callable[[int], None],
        options: EngineOptions,
    ) -> None:
        self._give_back = give_back
        self._path = path
        self.vocabulary = VOCABULARY
        self.kv_tokens = kv_tokens
        self.weights_mb = knobs.memory_mb
        self.kv_mb = 0
        self.memory_mb = knobs.memory_mb
        self.host_mb = self.mapped_mb = 0
        self._beyond = bytearray(b"x") * (knobs.beyond_mb << 20)
        self.batch_tokens = options.batch or BATCH_TOKENS
        self.in_force = {"batch": str(self.batch_tokens)}
        self.kind = MemoryKind[knobs.memory]
        self.sequences = parallel + idle + 1
        self.state_key = f"{path}:{hash(knobs)}"
        self.attention_share = knobs.attention_share
        self.cells: dict[int, list[Cell]] = {}
        """By sequence; a cell may be held by several."""
        self.computed: list[Chunk] = []
        self.restored = 0
        """Tokens that came back from host memory."""
        self.open_samplers = 0
        self.is_closed = False
        self.knobs = knobs
        self._pieces = [] if knobs.text is None else _cut(knobs.text.encode(), knobs.bytes_per_token)
        self._last: list[list[int] | None] = []
        self._poison = _token(knobs.only_for) if knobs.only_for else None

    @property
    def used(self) -> int:
        """Cells that hold a token."""
        return len({id(c) for held in self.cells.values() for c in held})

    def tokens(self, sequence: int) -> list[int]:
        """Return what a sequence's cells hold."""
        return [c.token for c in self.cells.get(sequence, [])]

    def warm_up(self) -> None:
        """Take `warm_s`."""
        time.sleep(self.knobs.warm_s)

    def decode(self, chunks: Sequence[Chunk]) -> DecodeResult:
        """Store the chunks. Raises InvalidBatch where one does not continue its sequence."""
        assert not self.is_closed, "decode after close"
        total = sum(len(c.tokens) for c in chunks)
        room = self.kv_tokens if self.knobs.real_kv_tokens is None else self.knobs.real_kv_tokens
        if self.used + total > room:
            return DecodeResult.NO_ROOM
        for chunk in chunks:
            if not 0 <= chunk.sequence < self.sequences - 1:
                raise InvalidBatch(f"there is no sequence {chunk.sequence}")
            if chunk.position != len(self.cells.get(chunk.sequence, [])):
                raise InvalidBatch(f"{chunk} does not continue its sequence")
        prompt_tokens = sum(len(c.tokens) for c in chunks if len(c.tokens) > 1)
        time.sleep(self.knobs.prefill_token_s * prompt_tokens)
        if prompt_tokens < total:
            time.sleep(self.knobs.token_s)
        self._last = []
        self._die_with(chunks)
        for chunk in chunks:
            self.computed.append(chunk)
            self.cells.setdefault(chunk.sequence, []).extend(map(Cell, chunk.tokens))
            self._last.append(self.tokens(chunk.sequence) if chunk.wants_logits else None)
        return DecodeResult.DONE

    def _die_with(self, chunks: Sequence[Chunk]) -> None:
        """Do what `kill_batch_at` says if a chunk brings a poisoned prompt's sequence to that length of an answer."""
        if self.knobs.kill_batch_at is None:
            return
        for chunk in chunks:
            held = self.tokens(chunk.sequence) + list(chunk.tokens)
            answered = sum(_ANSWER <= t < _WORD for t in held)
            if self._poison in held and answered >= self.knobs.kill_batch_at:
                signal.raise_signal(signal.SIGSEGV)

    def new_sampler(
        self, stages: Sequence[Stage], prompt: list[int], output: list[int], constraint: Grammar | None = None
    ) -> "FakeSampler":
        """Return a sampler for the answer to `prompt`; it knows no constraint."""
        self.open_samplers += 1
        return FakeSampler(self, prompt, output)

    def next_token(self, chunk: int, prompt: list[int], output: list[int]) -> int:
        """Return the token after a chunk, and do what the knobs say happens there."""
        cells, i = self._last[chunk], len(output)
        assert cells == prompt + output, f"cells {cells} are not {prompt} and {output}"
        if self._poison is None or self._poison in prompt:
            self._misbehave(i)
        if self.knobs.length is not None and i >= self.knobs.length:
            return END
        if self.knobs.text is not None:
            return _TEXT + i if i < len(self._pieces) else END
        return answer(prompt, 1, i)[0]

    def likelihoods(self, chunk: int, token: int, count: int) -> TokenLogprob:
        """Be almost certain of the token, and put the numbers after it behind it."""
        first = [(self.piece(token), -0.25)] + [(f"{token + i} ".encode(), -2.0 * i) for i in range(1, count)]
        top = [Likelihood(*each) for each in first]
        return TokenLogprob(top[0], top[:count])

    def piece(self, token: int, *, is_shown: bool = False) -> bytes:
        """Return the token's text."""
        if token >= _TEXT:
            return self._pieces[token - _TEXT]
        return b"" if token == END else f"{token} ".encode()

    def is_end(self, token: int) -> bool:
        """Say whether it is the end token."""
        return token == END

    def forget(self, sequence: int) -> None:
        """Empty the sequence's cells."""
        self.cells.pop(sequence, None)

    def can_cut(self, sequence: int, length: int) -> bool:
        """Say whether its kind of memory is still there at `length`."""
        left = len(self.cells[sequence]) - length
        return self.kind is MemoryKind.CELLS or (self.kind is MemoryKind.WINDOW and left < self.knobs.window)

    def share(self, source: int, target: int, start: int, end: int) -> bool:
        """Let both hold the same cells."""
        held = self.cells.setdefault(target, [])
        assert len(held) == start, f"{target} holds {len(held)} cells, not {start}"
        assert len(self.cells[source]) >= end, f"{source} holds {len(self.cells[source])} cells, not {end}"
        assert len(self.cells[source]) == end or self.can_cut(source, end), f"{source} cannot be cut at {end}"
        held += self.cells[source][start:end]
        return True

    def save(self, sequence: int, start: int, end: int) -> bytearray | None:
        """Return the tokens, in as many bytes as the knobs say."""
        if self.kind is not MemoryKind.CELLS:
            assert (start, end) == (0, len(self.cells[sequence])), "a piece of what cannot be cut"
        tokens = self.tokens(sequence)[start:end]
        head = msgspec.msgpack.encode((start, tokens))
        return bytearray(head.ljust(len(tokens) * self.knobs.state_bytes_per_token, b"\xc1"))

    def restore(self, sequence: int, state: bytearray, start: int, end: int) -> bool:
        """Take the tokens back."""
        if self.knobs.refuse_restore:
            return False
        first, tokens = msgspec.msgpack.decode(bytes(state).rstrip(b"\xc1"), type=tuple[int, list[int]])
        if self.used + len(tokens) > self.kv_tokens:
            return False
        held = self.cells.setdefault(sequence, [])
        assert first <= start == len(held), f"{sequence} holds {len(held)} cells, not {start}"
        assert self.kind is MemoryKind.CELLS or end == len(tokens), "a piece of what cannot be cut"
        held += map(Cell, tokens[start - first : end - first])
        self.restored += end - start
        return True

    def close(self) -> None:
        """Remember that it is gone."""
        assert not self.is_closed, "closed twice"
        self.is_closed = True
        self._give_back(self.knobs.memory_mb - self.knobs.keep_mb)

    def _misbehave(self, i: int) -> None:
        knobs = self.knobs
        if i == knobs.raise_at:
            raise RuntimeError(f"raised at {i}, as told")
        if i == knobs.lose_device_at:
            raise DeviceLost(f"lost at {i}, as told")
        if i == knobs.segfault_at:
            signal.raise_signal(signal.SIGSEGV)
        if i == knobs.abort_at:
            os.abort()
        if i in knobs.killed_once_at:
            mark = Path(f"{self._path}.killed-at-{i}")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if i == knobs.exit_at:
            os._exit(3)
        if i == knobs.hang_at:
            _hang()


class FakeSampler:
    """Remembers what it chose."""

    def __init__(self, model: FakeModel, prompt: list[int], output: list[int]) -> None:
        self._model = model
        self._prompt = list(prompt)
        self._output = list(output)

    def sample(self, chunk: int) -> int:
        """Choose the one token there is."""
        token = self._model.next_token(chunk, self._prompt, self._output)
        self._output.append(token)
        return token

    def close(self) -> None:
        """Let the model count it."""
        self._model.open_samplers -= 1


def _cut(data: bytes, length: int) -> list[bytes]:
    return [data[i : i + length] for i in range(0, len(data), length)]


def _hang() -> None:
    while True:
        time.sleep(3600)
