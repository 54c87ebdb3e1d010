"""How much device memory a model will take, from its header and its profile. Pure; sizes in MiB unless named."""

from dataclasses import dataclass

from common.catalogue import Profile
from common.messages import ModelFacts

MIB = 2**20
COMPUTE_MB, COMPUTE_MB_PER_WIDTH = 12.0, 0.01
"""llama.cpp's compute buffers at a batch of 512: a constant and a share for each unit of the embedding. Measured on
models of 576 to 8,192 wide: 14 to 80 MiB."""
MASK_BYTES = 1024
"""The attention mask of such a batch: 512 rows of f16 for each cell of the pool."""
IDLE_SEQUENCES = 16
"""Kept for new prompts to continue from."""
EMBEDDING_CONTEXT = 2048
"""Tokens of a text for a vector, unless the profile says otherwise."""
EMBEDDING_BUFFERS = 12
"""Rows as wide as the embedding that llama.cpp holds for each token: input, attention, feed-forward."""
CELL_STEP = 256
"""llama.cpp rounds the number of cells up to this."""


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


def plan_memory(profile: Profile, facts: ModelFacts, free_mb: int | None, correction_mb: int = 0) -> MemoryPlan | str:
    """Choose context and pool so that the model fits into `free_mb` (None: unknown, taken as enough).

    `correction_mb`: by how much the estimate was wrong when this was loaded before. Returns the plan, or in words why
    there is none. A context that the profile names is kept or refused, never cut.
    """
    trained = facts.context_train
    if profile.context is not None and trained and profile.context > trained:
        return f"context {profile.context} is more than the model was trained for ({trained}); lower it in its profile"
    context = profile.context or trained or 4096
    if is_embedding(facts):
        context = min(context, profile.context or EMBEDDING_CONTEXT)
        return _plan_embedder(profile, facts, free_mb, context, correction_mb)
    # A row of floats a sequence, in the graph and outside of it.
    logits_mb = 2 * (profile.parallel + IDLE_SEQUENCES + 1) * facts.vocabulary * 4 / MIB
    fixed_mb = facts.file_bytes / MIB + COMPUTE_MB + COMPUTE_MB_PER_WIDTH * facts.embedding + logits_mb
    fixed_mb += correction_mb
    per_token_mb = (facts.kv_bytes_per_token + MASK_BYTES) / MIB
    wanted = profile.kv_tokens or context * profile.parallel
    room_mb = None if free_mb is None else free_mb - fixed_mb
    kv_tokens = _cells(wanted)
    if room_mb is not None and kv_tokens * per_token_mb > room_mb:
        fitting = int(room_mb / per_token_mb) // CELL_STEP * CELL_STEP if room_mb > 0 else 0
        least = _cells(profile.kv_tokens or profile.context or min(context, CELL_STEP))
        if fitting < least:
            need_mb = round(fixed_mb + least * per_token_mb)
            return f"it needs {need_mb} MiB with {least} KV cells, and {free_mb} MiB are free"
        kv_tokens = fitting
    estimated_mb = max(0, round(fixed_mb + kv_tokens * per_token_mb))
    memory_mb = max(estimated_mb, profile.vram_mb or 0)
    if free_mb is not None and memory_mb > free_mb:
        return f"it needs {memory_mb} MiB (vram_mb of its profile), and {free_mb} MiB are free"
    return MemoryPlan(min(context, kv_tokens), kv_tokens, profile.parallel, memory_mb, estimated_mb)


def is_embedding(facts: ModelFacts | None) -> bool:
    """Say whether a model gives vectors or scores, and no text."""
    return facts is not None and not {"embeddings", "rerank"}.isdisjoint(facts.capabilities)


def _plan_embedder(
    profile: Profile, facts: ModelFacts, free_mb: int | None, context: int, correction_mb: int
) -> MemoryPlan | str:
    """Plan a model whose texts are computed as a whole: its buffers grow with the longest one."""
    rows = context * (facts.embedding * EMBEDDING_BUFFERS * 4 + context * 4)
    need_mb = facts.file_bytes / MIB + COMPUTE_MB + (context * facts.kv_bytes_per_token + rows) / MIB
    estimated_mb = max(0, round(need_mb) + correction_mb)
    memory_mb = max(estimated_mb, profile.vram_mb or 0)
    if free_mb is not None and memory_mb > free_mb:
        return f"it needs {memory_mb} MiB for texts of {context} tokens, and {free_mb} MiB are free; lower its context"
    return MemoryPlan(context, context, profile.parallel, memory_mb, estimated_mb)


def _cells(tokens: int) -> int:
    return -(-tokens // CELL_STEP) * CELL_STEP
