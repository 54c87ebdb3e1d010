"""How much memory a model will take, from its header, its profile and the kind of device. Pure; MiB unless named."""

from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from common.catalogue import Profile
from common.engine_options import BATCH_TOKENS, CACHE_BYTES, EngineOptions, attention_rows
from common.messages import ModelFacts

MIB = 2**20
COMPUTE_MB, COMPUTE_MB_PER_WIDTH = 12.0, 0.01
"""llama.cpp's compute buffers at a batch of 512: a constant and a share for each unit of the embedding. Measured on
models of 576 to 8,192 wide: 14 to 80 MiB. Both grow with the batch."""
IDLE_SEQUENCES = 16
"""Kept for new prompts to continue from."""
LEAST_IDLE = 2
"""With a memory that costs something for each sequence."""
EMBEDDING_CONTEXT = 2048
"""Tokens of a text for a vector, unless the profile says otherwise."""
EMBEDDING_BUFFERS = 12
"""Rows as wide as the embedding that llama.cpp holds for each token: input, attention, feed-forward."""
CELL_STEP = 256
"""llama.cpp rounds the number of cells up to this."""
USEFUL_CONTEXT = 4096
"""Of a context that the profile leaves open: below this, layers go to the host rather than it gets shorter."""

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The sizes a model is loaded with."""

    context: int
    """Tokens one request may use."""
    kv_tokens: int
    """Cells of the pool that all slots share."""
    parallel: int
    memory_mb: int
    """To reserve: weights, KV, compute buffers, and never less than the profile's vram_mb."""
    estimated_mb: int
    """The same without regard to vram_mb."""
    gpu_layers: int | None = None
    """Layers in a GPU's memory, the output layer counted as one; None: all, or the device is a CPU."""
    host_mb: int = 0
    """What stays in host memory beside a GPU: weights, and the KV of layers that are not on it."""


def plan_memory(
    profile: Profile, facts: ModelFacts, free_mb: int | None, correction_mb: int = 0, kind: Kind = "cpu"
) -> MemoryPlan | str:
    """Choose context, pool and GPU layers so that the model fits into `free_mb` (None: unknown, taken as enough).

    `correction_mb`: by how much the estimate was wrong when this was loaded before. Returns the plan, or in words why
    there is none. A context or number of layers that the profile names is kept or refused, never cut.
    """
    trained = facts.context_train
    most = trained * profile.engine.stretch
    if profile.context is not None and trained and profile.context > most:
        longest = f"{trained}" if most == trained else f"{trained}, stretched {most:.0f}"
        return f"context {profile.context} is more than the model was trained for ({longest}); lower it in its profile"
    context = profile.context or trained or 4096
    if is_embedding(facts):
        context = min(context, profile.context or EMBEDDING_CONTEXT)
        return _plan_embedder(profile, facts, free_mb, context, correction_mb, kind)
    layers = profile.engine.n_gpu_layers
    total = len(facts.layer_bytes) + 1
    if kind == "cpu" or not facts.layer_bytes or layers == "all" or (isinstance(layers, int) and layers >= total):
        return _fit(profile, facts, free_mb, context, correction_mb, kind, None)
    if isinstance(layers, int):
        return _fit(profile, facts, free_mb, context, correction_mb, kind, layers)
    whole = _fit(profile, facts, free_mb, context, correction_mb, kind, None)
    if isinstance(whole, MemoryPlan) and whole.context >= min(context, USEFUL_CONTEXT):
        return whole
    # Fewer layers make room for the rest; the most that do so are the fastest.
    sufficient = _with_least(profile, min(context, USEFUL_CONTEXT))
    low, high = 0, total - 1
    while low < high:
        middle = (low + high + 1) // 2
        if isinstance(_fit(sufficient, facts, free_mb, context, correction_mb, kind, middle), MemoryPlan):
            low = middle
        else:
            high = middle - 1
    partial = _fit(profile, facts, free_mb, context, correction_mb, kind, low)
    return partial if isinstance(partial, MemoryPlan) else whole if isinstance(whole, MemoryPlan) else partial


def _with_least(profile: Profile, least: int) -> Profile:
    """Return a profile that is refused below so many cells."""
    return profile if profile.context or profile.kv_tokens else structs.replace(profile, kv_tokens=least)


def _fit(
    profile: Profile,
    facts: ModelFacts,
    free_mb: int | None,
    context: int,
    correction_mb: int,
    kind: Kind,
    layers: int | None,
) -> MemoryPlan | str:
    wanted = _cells(profile.kv_tokens or context * profile.parallel)
    kv_tokens = wanted
    if free_mb is not None and _need_mb(profile, facts, wanted, kind, layers)[0] + correction_mb > free_mb:
        least = _cells(profile.kv_tokens or profile.context or min(context, CELL_STEP))
        need_mb = _need_mb(profile, facts, least, kind, layers)[0] + correction_mb
        if need_mb > free_mb:
            return f"it needs {round(need_mb)} MiB with {least} KV cells, and {free_mb} MiB are free"
        kv_tokens = _most_cells(profile, facts, free_mb - correction_mb, least, wanted, kind, layers)
    need_mb, host_mb = _need_mb(profile, facts, kv_tokens, kind, layers)
    estimated_mb = max(0, int(need_mb + correction_mb))
    memory_mb = max(estimated_mb, profile.vram_mb or 0)
    if free_mb is not None and memory_mb > free_mb:
        return f"it needs {memory_mb} MiB (vram_mb of its profile), and {free_mb} MiB are free"
    return MemoryPlan(
        min(context, kv_tokens), kv_tokens, profile.parallel, memory_mb, estimated_mb, layers, round(host_mb)
    )


def _most_cells(
    profile: Profile, facts: ModelFacts, free_mb: float, least: int, most: int, kind: Kind, layers: int | None
) -> int:
    """Return how many cells fit, in whole steps; what a cell costs is no straight line."""
    low, high = least // CELL_STEP, most // CELL_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if _need_mb(profile, facts, middle * CELL_STEP, kind, layers)[0] <= free_mb:
            low = middle
        else:
            high = middle - 1
    return low * CELL_STEP


def _need_mb(
    profile: Profile, facts: ModelFacts, kv_tokens: int, kind: Kind, layers: int | None
) -> tuple[float, float]:
    """Return what it takes of the device, and beside it of the host."""
    options = profile.engine
    rows, holds_scores = attention_rows(options, kv_tokens, facts.heads, is_cpu=kind == "cpu")
    sequences = _sequences(profile, facts)
    compute_mb = _compute_mb(facts, options, kv_tokens, sequences, rows, holds_scores=holds_scores)
    memory_mb = _kv_mb(facts, options, kv_tokens, sequences, rows)
    if kind == "cpu" or not facts.layer_bytes:
        return facts.file_bytes / MIB + compute_mb + memory_mb, 0.0
    count = len(facts.layer_bytes)
    # llama.cpp counts from the end: the output layer is the first to be on a GPU.
    on_device = count if layers is None else max(0, min(count, layers - 1))
    device = sum(facts.layer_bytes[count - on_device :]) / MIB
    host = (facts.host_bytes + sum(facts.layer_bytes[: count - on_device])) / MIB
    output = facts.output_bytes / MIB
    if layers == 0:
        host += output
    else:
        device += output
    share = on_device / count
    return device + compute_mb + memory_mb * share, host + memory_mb * (1 - share)


def _compute_mb(
    facts: ModelFacts, options: EngineOptions, kv_tokens: int, sequences: int, rows: int, *, holds_scores: bool
) -> float:
    """Return what one step takes beside weights and KV."""
    logits = sequences * facts.vocabulary * 4
    windowed = _window_cells(facts, options, kv_tokens, sequences, rows) if facts.window_bytes_per_token else 0
    # Flash attention reads the mask as f16.
    masks = rows * (kv_tokens + windowed) * (4 if holds_scores else 2) if facts.kv_bytes_per_token else 0
    scores = rows * kv_tokens * facts.heads * 4 if holds_scores else 0
    width_mb = (COMPUTE_MB + COMPUTE_MB_PER_WIDTH * facts.embedding) * max(0.25, rows / BATCH_TOKENS)
    # The logits stand outside of the graph, and in it where the scores have been.
    return width_mb + (masks + logits + max(scores, logits)) / MIB


def kv_mb(profile: Profile, facts: ModelFacts, kv_tokens: int) -> float:
    """Return what the KV pool and the states of recurrent layers take."""
    rows, _ = attention_rows(profile.engine, kv_tokens, facts.heads, is_cpu=False)
    return _kv_mb(facts, profile.engine, kv_tokens, _sequences(profile, facts), rows)


def _kv_mb(facts: ModelFacts, options: EngineOptions, kv_tokens: int, sequences: int, rows: int) -> float:
    keys = CACHE_BYTES[options.cache_type_k or "f16"] * facts.key_share
    values = CACHE_BYTES[options.cache_type_v or "f16"] * (1 - facts.key_share)
    size = (keys + values) / CACHE_BYTES["f16"]
    windowed = _window_cells(facts, options, kv_tokens, sequences, rows)
    cells = kv_tokens * facts.kv_bytes_per_token + windowed * facts.window_bytes_per_token
    return (cells * size + facts.state_bytes * sequences) / MIB


def _window_cells(facts: ModelFacts, options: EngineOptions, kv_tokens: int, sequences: int, rows: int) -> int:
    if not facts.window or options.swa_full:
        return kv_tokens
    return min(kv_tokens, _cells(facts.window * sequences + rows))


def _sequences(profile: Profile, facts: ModelFacts) -> int:
    """Return how many sequences the engine makes: a window or a state costs memory for each (llama_engine.py)."""
    idle = IDLE_SEQUENCES
    if facts.window or facts.state_bytes:
        idle = min(idle, profile.parallel)
    return profile.parallel + max(idle, LEAST_IDLE) + 1


def is_embedding(facts: ModelFacts | None) -> bool:
    """Say whether a model gives vectors or scores, and no text."""
    return facts is not None and not {"embeddings", "rerank"}.isdisjoint(facts.capabilities)


def _plan_embedder(
    profile: Profile, facts: ModelFacts, free_mb: int | None, context: int, correction_mb: int, kind: Kind
) -> MemoryPlan | str:
    """Plan a model whose texts are computed as a whole: its buffers grow with the longest one."""
    rows = context * (facts.embedding * EMBEDDING_BUFFERS * 4 + context * 4)
    weights = facts.file_bytes
    if kind == "cuda" and facts.layer_bytes:
        weights -= facts.host_bytes
    need_mb = weights / MIB + COMPUTE_MB + (context * facts.kv_bytes_per_token + rows) / MIB
    estimated_mb = max(0, round(need_mb) + correction_mb)
    memory_mb = max(estimated_mb, profile.vram_mb or 0)
    if free_mb is not None and memory_mb > free_mb:
        return f"it needs {memory_mb} MiB for texts of {context} tokens, and {free_mb} MiB are free; lower its context"
    host_mb = round((facts.file_bytes - weights) / MIB)
    return MemoryPlan(context, context, profile.parallel, memory_mb, estimated_mb, None, host_mb)


def _cells(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP
