"""llama.cpp through llama-cpp-python's low-level API; the only file of the worker that imports it.

What is called for every token is bound once and called without wrappers; batch arrays are written in place.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import llama_cpp
from llama_cpp._ggml import libggml

from neuron.worker import llama_log
from neuron.worker.engine import (
    CHUNK_TOKENS,
    Chunk,
    DecodeResult,
    DeviceLost,
    EngineFacts,
    InvalidBatch,
    LoadError,
)
from neuron.worker.sampling import Draw, Greedy, LogitBias, MinP, Penalties, Stage, Temperature, TopK, TopP

ALL_LAYERS = -1
SCORES_MB = 128
"""Attention scores that a batch may hold at a time on a CPU."""
LEAST_ROWS = 16
"""Of a batch on a CPU, before flash attention is taken to save memory."""
_GPU_TYPES = (1, 2)
"""ggml_backend_dev_type: GPU, IGPU."""
_PIECE_BYTES = 256


def create_engine(threads: int, kind: str) -> "LlamaEngine":
    """Return the engine for a device of `kind` cpu or cuda."""
    return LlamaEngine(threads, kind)


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_device_count = _ggml("ggml_backend_dev_count", ctypes.c_size_t)
_device_get = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_device_type = _ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_device_name = _ggml("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_device_description = _ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_device_registry = _ggml("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
_device_memory = _ggml(
    "ggml_backend_dev_memory",
    None,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
)
_registry_name = _ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
_ggml_version = _ggml("ggml_version", ctypes.c_char_p)
_ggml_commit = _ggml("ggml_commit", ctypes.c_char_p)


class LlamaEngine:
    """llama.cpp on one device."""

    def __init__(self, threads: int, kind: str) -> None:
        self._threads = threads
        self._kind = kind
        self._is_initialised = False
        llama_log.capture(llama_cpp.llama_log_set, llama_cpp.llama_log_callback)

    def facts(self) -> EngineFacts:
        """Describe build and devices. Names and types are known without a context on the device."""
        gpus = self._gpus()
        return EngineFacts(
            build=f"llama-cpp-python {llama_cpp.__version__}, ggml {_text(_ggml_version())} ({_text(_ggml_commit())})",
            backend=_text(_registry_name(_device_registry(gpus[0]))) if gpus else "CPU",
            devices=[f"{_text(_device_name(g))}: {_text(_device_description(g))}" for g in gpus],
        )

    def load(self, path: str, *, kv_tokens: int, parallel: int, progress: Callable[[float], bool]) -> "LlamaModel":
        """Load a GGUF and make its context. Raises LoadError with llama.cpp's own reason."""
        if not self._is_initialised:
            llama_cpp.llama_backend_init()
            self._is_initialised = True
        with llama_log.collect() as lines:
            model = llama_cpp.llama_model_load_from_file(os.fsencode(path), self._model_params(progress))
            if not model:
                raise LoadError(f"{Path(path).name}: {llama_log.decisive(lines) or 'llama.cpp gives no reason'}")
            context = llama_cpp.llama_init_from_model(model, self._context_params(model, kv_tokens, parallel))
            if not context:
                llama_cpp.llama_model_free(model)
                raise LoadError(llama_log.decisive(lines) or f"llama.cpp has no room for {kv_tokens} KV cells")
        return LlamaModel(model, context, parallel, llama_log.buffers_mb(lines))

    def device_memory(self) -> tuple[int, int] | None:
        """Return the GPU's free and total MiB as its driver tells them."""
        gpus = self._gpus()
        if not gpus:
            return None
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _device_memory(gpus[0], ctypes.byref(free), ctypes.byref(total))
        return free.value >> 20, total.value >> 20

    def close(self) -> None:
        """Shut llama.cpp down."""
        if self._is_initialised:
            llama_cpp.llama_backend_free()

    def _gpus(self) -> list[int]:
        if self._kind == "cpu":
            return []
        devices = [_device_get(i) for i in range(_device_count())]
        return [d for d in devices if _device_type(d) in _GPU_TYPES]

    def _model_params(self, progress: Callable[[float], bool]) -> Any:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0 if self._kind == "cpu" else ALL_LAYERS
        params.split_mode = llama_cpp.LLAMA_SPLIT_MODE_NONE  # one worker, one device
        params.progress_callback = llama_cpp.llama_progress_callback(lambda fraction, _: progress(fraction))
        return params

    def _context_params(self, model: Any, kv_tokens: int, parallel: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = kv_tokens
        params.n_seq_max = params.n_outputs_max = parallel  # one output a sequence; more would only cost memory
        params.n_batch = params.n_ubatch = CHUNK_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        if self._kind == "cpu":
            # Flash attention on a CPU works in tiles of 64 rows: fewer cost twice as much a row, and decode is fewer.
            # Without it the scores are held, so a batch is computed in pieces that bound them.
            rows = SCORES_MB * 2**20 // (kv_tokens * 4 * max(1, llama_cpp.llama_model_n_head(model)))
            if rows >= LEAST_ROWS:
                params.n_ubatch = min(CHUNK_TOKENS, rows)
                params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = True
        params.no_perf = True
        params.offload_kqv = params.op_offload = self._kind != "cpu"
        return params


class LlamaModel:
    """A model, its context, and one batch that is filled anew for each decode."""

    def __init__(self, model: Any, context: Any, parallel: int, buffers_mb: dict[str, float]) -> None:
        self._model = model
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.kv_tokens = int(llama_cpp.llama_n_ctx(context))  # llama.cpp rounds up
        self.weights_mb = round(buffers_mb.get("model", llama_cpp.llama_model_size(model) / 2**20))
        self.kv_mb = round(buffers_mb.get("KV", 0.0) + buffers_mb.get("RS", 0.0))
        self.memory_mb = self.weights_mb + self.kv_mb
        self.memory_mb += round(buffers_mb.get("compute", 0.0) + buffers_mb.get("output", 0.0))
        self._pieces: dict[int, bytes] = {}
        self._piece_buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self._rows: list[int] = []
        """By chunk of the last decode: the batch row of its last token."""
        self._make_batch(parallel)

    def _make_batch(self, parallel: int) -> None:
        rows = CHUNK_TOKENS
        self._tokens: Any = (ctypes.c_int32 * rows)()
        self._positions: Any = (ctypes.c_int32 * rows)()
        self._outputs: Any = (ctypes.c_int8 * rows)()
        counts = (ctypes.c_int32 * rows)(*[1] * rows)
        ids = (ctypes.c_int32 * parallel)(*range(parallel))
        # Rows point at their sequence's id; as plain addresses, since a ctypes pointer each costs ten times that.
        self._sequences = (ctypes.c_size_t * rows)()
        self._addresses = [ctypes.addressof(ids) + 4 * i for i in range(parallel)]
        self._batch = cast(Any, llama_cpp.llama_batch())
        self._batch.token = ctypes.cast(self._tokens, ctypes.POINTER(ctypes.c_int32))
        self._batch.pos = ctypes.cast(self._positions, ctypes.POINTER(ctypes.c_int32))
        self._batch.n_seq_id = ctypes.cast(counts, ctypes.POINTER(ctypes.c_int32))
        self._batch.seq_id = ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        self._batch.logits = ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8))
        self._keep = (counts, ids)

    def warm_up(self) -> None:
        """Run one token and forget it."""
        token = max(0, int(llama_cpp.llama_vocab_bos(self._vocab)))
        self.decode([Chunk(0, 0, [token], True)])
        self.forget(0)

    def decode(self, chunks: Sequence[Chunk]) -> DecodeResult:
        """Compute the chunks. Raises InvalidBatch, DeviceLost."""
        tokens, positions, outputs = self._tokens, self._positions, self._outputs
        sequences, addresses, rows = self._sequences, self._addresses, self._rows
        rows.clear()
        end = 0
        for sequence, position, chunk, wants_logits in chunks:
            start, length = end, len(chunk)
            end += length
            if length == 1:
                tokens[start], positions[start], sequences[start] = chunk[0], position, addresses[sequence]
                outputs[start] = wants_logits
            else:
                tokens[start:end] = chunk
                positions[start:end] = range(position, position + length)
                sequences[start:end] = [addresses[sequence]] * length
                outputs[start:end] = bytes(length)
                outputs[end - 1] = wants_logits
            rows.append(end - 1)
        self._batch.n_tokens = end
        result = llama_cpp.llama_decode(self._context, self._batch)
        if result == 0:
            llama_cpp.llama_synchronize(self._context)  # on a GPU decode returns before the work is done
            return DecodeResult.DONE
        if result == 1:
            return DecodeResult.NO_ROOM
        reason = llama_log.last_error() or "no reason given"
        if result == -1:
            raise InvalidBatch(f"llama_decode: {reason}")
        raise DeviceLost(f"llama_decode returned {result}: {reason}")

    def new_sampler(self, stages: Sequence[Stage], prompt: list[int], output: list[int]) -> "LlamaSampler":
        """Return a chain of llama.cpp's samplers that has seen the end of the prompt and all of the output."""
        params = llama_cpp.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = llama_cpp.llama_sampler_chain_init(params)
        for stage in stages:
            llama_cpp.llama_sampler_chain_add(chain, self._sampler(stage))
        window = max((s.window for s in stages if isinstance(s, Penalties)), default=0)
        for token in [*prompt, *output][-window:] if window else []:
            llama_cpp.llama_sampler_accept(chain, token)
        return LlamaSampler(chain, self._context, self._rows)

    def piece(self, token: int, *, is_shown: bool = False) -> bytes:
        """Return the token's text; empty for control tokens unless `is_shown`."""
        if is_shown:
            return self._make_piece(token, is_shown)
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._make_piece(token, is_shown)
        return piece

    def _make_piece(self, token: int, is_shown: bool) -> bytes:
        length = llama_cpp.llama_token_to_piece(self._vocab, token, self._piece_buffer, _PIECE_BYTES, 0, is_shown)
        buffer = self._piece_buffer
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -length, 0, is_shown)
        return buffer.raw[:length]

    def is_end(self, token: int) -> bool:
        """Say whether the token ends the answer."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def forget(self, sequence: int) -> None:
        """Free the sequence's cells."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Free context and model."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _sampler(self, stage: Stage) -> Any:
        match stage:
            case LogitBias(entries=entries):
                biases = (llama_cpp.llama_logit_bias * len(entries))(*[llama_cpp.llama_logit_bias(*e) for e in entries])
                return llama_cpp.llama_sampler_init_logit_bias(self.vocabulary, len(entries), biases)
            case Penalties():
                return llama_cpp.llama_sampler_init_penalties(self.vocabulary, *stage)
            case TopK(k=k):
                return llama_cpp.llama_sampler_init_top_k(k)
            case TopP(p=p):
                return llama_cpp.llama_sampler_init_top_p(p, 1)
            case MinP(p=p):
                return llama_cpp.llama_sampler_init_min_p(p, 1)
            case Temperature(temperature=temperature):
                return llama_cpp.llama_sampler_init_temp(temperature)
            case Greedy():
                return llama_cpp.llama_sampler_init_greedy()
            case Draw(seed=seed):
                return llama_cpp.llama_sampler_init_dist(seed)


class LlamaSampler:
    """A sampler chain of one sequence."""

    __slots__ = ("_chain", "_context", "_rows")

    def __init__(self, chain: Any, context: Any, rows: list[int]) -> None:
        self._chain = chain
        self._context = context
        self._rows = rows

    def sample(self, chunk: int) -> int:
        """Choose the token after a chunk of the last decode, and accept it."""
        return int(llama_cpp.llama_sampler_sample(self._chain, self._context, self._rows[chunk]))

    def close(self) -> None:
        """Free the chain and its samplers."""
        llama_cpp.llama_sampler_free(self._chain)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
