"""Vectors and scores through llama.cpp: a context of its own kind, in which a batch is computed as a whole."""

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from common.engine_options import EngineOptions
from neuron.worker import llama_log
from neuron.worker.engine import DeviceLost, InvalidBatch, LoadError, MemoryKind, OutOfMemory
from neuron.worker.llama_params import context_params, read_back

MOST_TEXTS = 64
"""In one batch."""


def embedding_params(tokens: int, options: EngineOptions, threads: int, kind: str, pooling: int) -> Any:
    """Return the context's parameters. llama.cpp aborts on a text that is longer than its physical batch."""
    params = context_params(options, kind, threads=threads)
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_seq_max = min(MOST_TEXTS, tokens)
    params.embeddings = True
    params.pooling_type = pooling
    return params


def open_embedder(
    model: Any, tokens: int, options: EngineOptions, threads: int, kind: str, lines: list[llama_log.Line]
) -> "LlamaEmbedder":
    """Make a loaded model's context, pooling as its file says, else by the mean. Raises LoadError; frees the model."""
    for pooling in (llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED, llama_cpp.LLAMA_POOLING_TYPE_MEAN):
        context = llama_cpp.llama_init_from_model(model, embedding_params(tokens, options, threads, kind, pooling))
        if not context:
            llama_cpp.llama_model_free(model)
            failure = OutOfMemory if llama_log.is_out_of_memory(lines) else LoadError
            raise failure(llama_log.decisive(lines) or f"llama.cpp has no room for texts of {tokens} tokens")
        if llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE:
            break
        llama_cpp.llama_free(context)
    try:
        in_force = read_back(context, lines)
    except LoadError:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        raise
    return LlamaEmbedder(model, context, tokens, llama_log.buffers_mb(lines, kind), in_force)


class LlamaEmbedder:
    """A model and its context for vectors, or for scores."""

    kind = MemoryKind.CELLS
    state_key = ""

    def __init__(
        self, model: Any, context: Any, tokens: int, buffers: llama_log.Buffers, in_force: dict[str, str]
    ) -> None:
        self._model = model
        self._context = context
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._memory = llama_cpp.llama_get_memory(context)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.is_ranking = llama_cpp.llama_pooling_type(context) == llama_cpp.LLAMA_POOLING_TYPE_RANK
        self.kv_tokens = tokens
        self.sequences = min(MOST_TEXTS, tokens)
        self._width = int(llama_cpp.llama_model_n_embd_out(model))
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        self.weights_mb = round(buffers.device("model"))
        self.kv_mb = round(buffers.device("KV"))
        self.memory_mb = self.weights_mb + self.kv_mb + round(buffers.device("compute", "output"))
        self.host_mb, self.mapped_mb = round(buffers.host()), round(buffers.mapped())
        self.in_force = in_force

    def warm_up(self) -> None:
        """Compute one token."""
        self.compute([[max(0, int(llama_cpp.llama_vocab_bos(self._vocab)))]])

    def compute(self, texts: Sequence[list[int]]) -> list[bytes] | list[float]:
        """Return a vector of length 1 for each text as little-endian floats, or its score.

        Raises InvalidBatch, DeviceLost.
        """
        self._fill(texts)
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, True)
        result = llama_cpp.llama_decode(self._context, self._batch)
        if result in (1, -1):
            raise InvalidBatch(f"llama_decode: {llama_log.last_error() or 'no reason given'}")
        if result != 0:
            raise DeviceLost(f"llama_decode returned {result}: {llama_log.last_error() or 'no reason given'}")
        llama_cpp.llama_synchronize(self._context)
        rows = [llama_cpp.llama_get_embeddings_seq(self._context, i) for i in range(len(texts))]
        if self.is_ranking:
            return [float(row[0]) for row in rows]
        return [_normalise(np.ctypeslib.as_array(row, (self._width,))) for row in rows]

    def close(self) -> None:
        """Free context and model."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _fill(self, texts: Sequence[list[int]]) -> None:
        batch: Any = self._batch
        row = 0
        for sequence, text in enumerate(texts):
            for position, token in enumerate(text):
                batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
                batch.seq_id[row][0], batch.logits[row] = sequence, 1
                row += 1
        batch.n_tokens = row


def _normalise(vector: Any) -> bytes:
    values = vector.astype(np.float64)
    length = float(np.sqrt((values * values).sum()))
    return bytes((values / length if length else values).astype("<f4").tobytes())
