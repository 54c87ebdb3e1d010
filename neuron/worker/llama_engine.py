"""llama.cpp through llama-cpp-python's low-level API; with llama_sampling all that imports it in the worker.

What is called for every token is bound once and called without wrappers; batch arrays are written in place.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._ggml import libggml

from common.engine_options import EngineOptions
from common.messages import Grammar, TokenLogprob
from neuron import binding
from neuron.worker import llama_log
from neuron.worker.engine import (
    Chunk,
    DecodeResult,
    DeviceLost,
    EngineFacts,
    InvalidBatch,
    LoadError,
    MemoryKind,
    OutOfMemory,
)
from neuron.worker.llama_batch import LlamaBatch
from neuron.worker.llama_embedding import LlamaEmbedder, open_embedder
from neuron.worker.llama_params import ModelParams, generation_params, read_back, use_numa
from neuron.worker.llama_sampling import (
    ConstrainedSampler,
    LlamaSampler,
    free_sampler,
    likelihoods,
    new_chain,
)
from neuron.worker.sampling import Stage

_GPU_TYPES = (1, 2)
"""ggml_backend_dev_type: GPU, IGPU."""
_PIECE_BYTES = 256
MOST_SEQUENCES = 256
"""LLAMA_MAX_SEQ."""
LEAST_IDLE = 2
"""One to continue from, while another one makes room."""
_WINDOW_ONLY = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


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
        binding.prepare(llama_cpp, libggml)

    def facts(self) -> EngineFacts:
        """Describe build and devices. Names and types are known without a context on the device."""
        gpus = self._gpus()
        return EngineFacts(
            build=f"llama-cpp-python {llama_cpp.__version__}, ggml {_text(_ggml_version())} ({_text(_ggml_commit())})",
            backend=_text(_registry_name(_device_registry(gpus[0]))) if gpus else "CPU",
            devices=[f"{_text(_device_name(g))}: {_text(_device_description(g))}" for g in gpus],
        )

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
    ) -> "LlamaModel":
        """Load a GGUF and make its context. Raises LoadError with llama.cpp's own reason."""
        most = MOST_SEQUENCES - LEAST_IDLE - 1
        if parallel > most:
            raise LoadError(f"parallel: {parallel} is more than llama.cpp can run at once ({most})")
        with llama_log.collect() as lines:
            model = self._read(path, options, progress, lines, devices)
            kind = _memory_kind(model)
            sequences = _sequences(kind, parallel, idle)
            params = generation_params(
                options,
                self._kind,
                threads=self._threads,
                kv_tokens=kv_tokens,
                sequences=sequences,
                heads=int(llama_cpp.llama_model_n_head(model)),
            )
            context = llama_cpp.llama_init_from_model(model, params)
            if not context:
                llama_cpp.llama_model_free(model)
                raise _failure(lines, f"llama.cpp has no room for {kv_tokens} KV cells")
            try:
                in_force = read_back(context, lines)
            except LoadError:
                llama_cpp.llama_free(context)
                llama_cpp.llama_model_free(model)
                raise
        buffers = llama_log.buffers_mb(lines, self._kind)
        return LlamaModel(model, context, kind, sequences, _state_key(path, params), buffers, in_force)

    def load_embedder(
        self,
        path: str,
        *,
        tokens: int,
        options: EngineOptions,
        progress: Callable[[float], bool],
        devices: Sequence[int] = (),
    ) -> LlamaEmbedder:
        """Load a GGUF for vectors or scores. Raises LoadError."""
        with llama_log.collect() as lines:
            model = self._read(path, options, progress, lines, devices)
            return open_embedder(model, tokens, options, self._threads, self._kind, lines)

    def _read(
        self,
        path: str,
        options: EngineOptions,
        progress: Callable[[float], bool],
        lines: list[llama_log.Line],
        devices: Sequence[int],
    ) -> Any:
        if not self._is_initialised:
            llama_cpp.llama_backend_init()
            self._is_initialised = True
        use_numa(options)
        gpus = self._gpus()
        chosen = [gpus[i] for i in devices or range(1) if i < len(gpus)]
        params = ModelParams(options, self._kind, progress, chosen)
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params.value)
        if not model:
            raise _failure(lines, "llama.cpp gives no reason", f"{Path(path).name}: ")
        return model

    def device_memory(self) -> tuple[int, int] | None:
        """Return the GPUs' free and total MiB as their driver tells them."""
        gpus = self._gpus()
        if not gpus:
            return None
        free_mb = total_mb = 0
        for gpu in gpus:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            _device_memory(gpu, ctypes.byref(free), ctypes.byref(total))
            free_mb, total_mb = free_mb + (free.value >> 20), total_mb + (total.value >> 20)
        return free_mb, total_mb

    def close(self) -> None:
        """Shut llama.cpp down."""
        if self._is_initialised:
            llama_cpp.llama_backend_free()

    def _gpus(self) -> list[int]:
        if self._kind == "cpu":
            return []
        devices = [_device_get(i) for i in range(_device_count())]
        return [d for d in devices if _device_type(d) in _GPU_TYPES]


class LlamaModel:
    """A model and its context."""

    def __init__(
        self,
        model: Any,
        context: Any,
        kind: MemoryKind,
        sequences: int,
        state_key: str,
        buffers: llama_log.Buffers,
        in_force: dict[str, str],
    ) -> None:
        self._model = model
        self._context = context
        self.kind = kind
        self.sequences = sequences
        self.state_key = state_key
        self.attention_share = _attention_share(model) if kind is MemoryKind.CELLS else 0.0
        self._window = int(llama_cpp.llama_model_n_swa(model))
        self._scratch = sequences - 1
        self._memory = llama_cpp.llama_get_memory(context)
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.kv_tokens = int(llama_cpp.llama_n_ctx(context))  # llama.cpp rounds up
        self.weights_mb = round(buffers.device("model"))
        self.kv_mb = round(buffers.device("KV", "RS"))
        self.memory_mb = self.weights_mb + self.kv_mb + round(buffers.device("compute", "output"))
        self.host_mb, self.mapped_mb = round(buffers.host()), round(buffers.mapped())
        self.in_force = in_force
        self.batch_tokens = int(llama_cpp.llama_n_batch(context))
        self._pieces: dict[int, bytes] = {}
        self._shown_piece = partial(self.piece, is_shown=True)
        self._piece_buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self._batch = LlamaBatch(sequences, self.batch_tokens)

    def warm_up(self) -> None:
        """Run one token and forget it."""
        token = max(0, int(llama_cpp.llama_vocab_bos(self._vocab)))
        self.decode([Chunk(0, 0, [token], True)])
        self.forget(0)

    def decode(self, chunks: Sequence[Chunk]) -> DecodeResult:
        """Compute the chunks. Raises InvalidBatch, DeviceLost."""
        result = llama_cpp.llama_decode(self._context, self._batch.fill(chunks))
        if result == 0:
            llama_cpp.llama_synchronize(self._context)  # on a GPU decode returns before the work is done
            return DecodeResult.DONE
        if result == 1:
            return DecodeResult.NO_ROOM
        reason = llama_log.last_error() or "no reason given"
        if result == -1:
            raise InvalidBatch(f"llama_decode: {reason}")
        raise DeviceLost(f"llama_decode returned {result}: {reason}")

    def new_sampler(
        self, stages: Sequence[Stage], prompt: list[int], output: list[int], constraint: Grammar | None = None
    ) -> "LlamaSampler":
        """Return a chain of llama.cpp's samplers that has seen the end of the prompt and all of the output."""
        chain = new_chain(self._vocab, stages, [*prompt, *output])
        if constraint is None:
            return LlamaSampler(chain, self._context, self._batch.rows)
        try:
            return ConstrainedSampler(
                chain,
                self._context,
                self._batch.rows,
                self._vocab,
                stages,
                constraint,
                output,
                self._shown_piece,
            )
        except Exception:
            free_sampler(chain)
            raise

    def likelihoods(self, chunk: int, token: int, count: int) -> TokenLogprob:
        """Return what the model itself thought of the token after a chunk of the last decode, and the likeliest."""
        return likelihoods(self._context, self._batch.rows[chunk], self.vocabulary, token, count, self._shown_piece)

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
        """Free the sequence's cells, but for those that others hold too."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def can_cut(self, sequence: int, length: int) -> bool:
        """Say whether the window before `length` is still there."""
        if self.kind is MemoryKind.STATE:
            return False
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(first <= max(0, length - self._window))

    def share(self, source: int, target: int, start: int, end: int) -> bool:
        """Let `target` hold the cells of source's tokens up to `end` too; False if there is no room for a window."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, start, end)
        if self.kind is not MemoryKind.WINDOW:
            return True
        # Cells held twice are never given free when the window has moved on, so each has its own.
        state = self._state(target, _WINDOW_ONLY)
        return state is not None and self._set_state(target, state, _WINDOW_ONLY)

    def save(self, sequence: int, start: int, end: int) -> bytearray | None:
        """Return the state of tokens start … end−1; for a memory that is not of cells of the whole sequence."""
        if self.kind is not MemoryKind.CELLS:
            return self._state(sequence, 0)
        llama_cpp.llama_memory_seq_cp(self._memory, sequence, self._scratch, start, end)
        try:
            return self._state(self._scratch, 0)
        finally:
            self.forget(self._scratch)

    def restore(self, sequence: int, state: bytearray, start: int, end: int) -> bool:
        """Append saved tokens from `start` on; False where llama.cpp finds no room for them or another layout."""
        if self.kind is not MemoryKind.CELLS:
            return self._set_state(sequence, state, 0)
        try:
            if not self._set_state(self._scratch, state, 0):
                return False
            llama_cpp.llama_memory_seq_cp(self._memory, self._scratch, sequence, start, end)
            return True
        finally:
            self.forget(self._scratch)

    def _state(self, sequence: int, flags: int) -> bytearray | None:
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, sequence, flags)
        state = bytearray(size)
        view = (ctypes.c_uint8 * size).from_buffer(state)
        written = llama_cpp.llama_state_seq_get_data_ext(self._context, view, size, sequence, flags)
        return state if written == size else None

    def _set_state(self, sequence: int, state: bytearray, flags: int) -> bool:
        view = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(llama_cpp.llama_state_seq_set_data_ext(self._context, view, len(state), sequence, flags))

    def close(self) -> None:
        """Free context and model."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


def _failure(lines: list[llama_log.Line], otherwise: str, prefix: str = "") -> LoadError:
    kind = OutOfMemory if llama_log.is_out_of_memory(lines) else LoadError
    return kind(prefix + (llama_log.decisive(lines) or otherwise))


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _memory_kind(model: Any) -> MemoryKind:
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
        return MemoryKind.STATE
    return MemoryKind.WINDOW if llama_cpp.llama_model_n_swa(model) > 0 else MemoryKind.CELLS


def _attention_share(model: Any) -> float:
    """Count multiplications: two products with a cell's heads in each layer, against one with each weight."""
    width = llama_cpp.llama_model_n_embd(model) * llama_cpp.llama_model_n_layer(model)
    return float(2 * width / llama_cpp.llama_model_n_params(model))


def _sequences(kind: MemoryKind, parallel: int, idle: int) -> int:
    """Return how many sequence numbers to make; a window or a state costs device memory for each."""
    if kind is not MemoryKind.CELLS:
        idle = min(idle, parallel)
    return min(MOST_SEQUENCES, parallel + max(idle, LEAST_IDLE) + 1)


def _state_key(path: str, params: Any) -> str:
    """Return the identity of the file and of the layout its states have."""
    status = Path(path).stat()
    layout = f"{params.type_k}:{params.type_v}:{params.flash_attn_type}"
    return f"{Path(path).resolve()}:{status.st_size}:{status.st_mtime_ns}:{layout}"
