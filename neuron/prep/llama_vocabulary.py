"""Vocabularies through llama.cpp, loaded vocabulary-only; the only file of prep that imports it."""

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._ggml import libggml

from common.ids import digest
from common.messages import ModelFacts
from neuron.prep.vocabulary import Gap, UnusableFile

_INTEGERS = {
    0: ctypes.c_uint8, 1: ctypes.c_int8, 2: ctypes.c_uint16, 3: ctypes.c_int16,
    4: ctypes.c_uint32, 5: ctypes.c_int32, 10: ctypes.c_uint64, 11: ctypes.c_int64,
}  # fmt: skip
"""By gguf_type. Asking for a value of another type than it has would abort the process."""
_STRING, _ARRAY = 8, 9
"""gguf_type."""
_LOG_ERROR = 4
"""ggml_log_level."""
_F16_BYTES = 2
_UNKNOWN_ARCHITECTURE = "unknown model architecture"
_FIRST_PART = re.compile(r"(?P<stem>.*)-00001-of-\d{5}\.gguf")


class _GgufParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _gguf(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_open = _gguf("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufParams)
_free = _gguf("gguf_free", None, ctypes.c_void_p)
_find = _gguf("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
_type = _gguf("gguf_get_kv_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_data = _gguf("gguf_get_val_data", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_str = _gguf("gguf_get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
_array_length = _gguf("gguf_get_arr_n", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
_array_type = _gguf("gguf_get_arr_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_array_data = _gguf("gguf_get_arr_data", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_tensor_count = _gguf("gguf_get_n_tensors", ctypes.c_int64, ctypes.c_void_p)
_tensor_offset = _gguf("gguf_get_tensor_offset", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
_tensor_size = _gguf("gguf_get_tensor_size", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
_data_offset = _gguf("gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p)

_errors: list[str] = []
"""What llama.cpp complained of since the list was last cleared; the first is the cause, the rest report it upwards."""


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level == _LOG_ERROR:
        _errors.append(re.sub(r"^[\w:~]+: ", "", text.decode(errors="replace").strip()))


llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def build() -> str:
    """Return the version of the binding."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def open_vocabulary(path: str) -> "LlamaVocabulary":
    """Open a GGUF. Raises UnusableFile: no GGUF, shorter than its header says, unknown to this llama.cpp; OSError."""
    with _header(path) as header:
        kv_bytes = _kv_bytes(header)
        parts = _parts(path, (_numbers(header, b"split.count") or [1])[0])
    file_bytes = sum(_check_size(part) for part in parts)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    _errors.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise UnusableFile(f"llama.cpp refuses it: {_complaint()}")
    return LlamaVocabulary(model, file_bytes, kv_bytes)


def _complaint() -> str:
    complaint = next(iter(_errors), "it gives no reason")
    if _UNKNOWN_ARCHITECTURE in complaint:
        complaint += f"; it needs a newer llama.cpp; this is {build()}"
    return complaint


@contextmanager
def _header(path: str) -> Iterator[int]:
    """Yield the file's header as ggml read it."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UnusableFile("it is no GGUF file (it does not begin with 'GGUF')")
    _errors.clear()
    header = _open(os.fsencode(path), _GgufParams(True, None))
    if not header:
        raise UnusableFile(f"its header is damaged or cut off: {_complaint()}")
    try:
        yield header
    finally:
        _free(header)


def _parts(path: str, count: int) -> list[str]:
    """Return the files a model consists of: one, or as many as its first part says, named as llama.cpp wants them."""
    if count <= 1:
        return [path]
    match = _FIRST_PART.fullmatch(path)
    if match is None:
        raise UnusableFile(f"it is one of {count} parts; name the first, which ends in -00001-of-{count:05}.gguf")
    parts = [f"{match['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    missing = [Path(part).name for part in parts if not Path(part).is_file()]
    if missing:
        raise UnusableFile(f"parts of it are missing: {', '.join(missing)}")
    return parts


def _check_size(path: str) -> int:
    """Return the size of a file in bytes. Loading the vocabulary alone would not notice that tensors are cut off."""
    size = os.stat(path).st_size
    with _header(path) as header:
        ends = [_tensor_offset(header, i) + _tensor_size(header, i) for i in range(_tensor_count(header))]
        needed = _data_offset(header) + max(ends) if ends else 0
    if size < needed:
        raise UnusableFile(f"{Path(path).name} is truncated: {size} bytes of {needed}; download it again")
    return size


def _kv_bytes(header: int) -> int:
    """Return the bytes of f16 KV one token takes: heads × (key + value), over all layers."""
    key = _find(header, b"general.architecture")
    if key < 0 or _type(header, key) != _STRING:
        raise UnusableFile("its header names no general.architecture")
    arch = _str(header, key)
    layers = (_numbers(header, arch + b".block_count") or [0])[0]
    heads = _numbers(header, arch + b".attention.head_count") or [0]
    kv_heads = _numbers(header, arch + b".attention.head_count_kv") or heads
    embedding = (_numbers(header, arch + b".embedding_length") or [0])[0]
    head = embedding // max(heads) if max(heads) else 0
    width = (_numbers(header, arch + b".attention.key_length") or [head])[0]
    width += (_numbers(header, arch + b".attention.value_length") or [head])[0]
    total = sum(kv_heads) if len(kv_heads) > 1 else kv_heads[0] * layers
    return total * width * _F16_BYTES


def _numbers(header: int, name: bytes) -> list[int]:
    """Return a whole number of the header, or a list of them; empty if it has none of that name."""
    key = _find(header, name)
    if key < 0:
        return []
    kind, length, read = _type(header, key), 1, _data
    if kind == _ARRAY:
        kind, length, read = _array_type(header, key), _array_length(header, key), _array_data
    if kind not in _INTEGERS or not length:
        return []
    values = ctypes.cast(read(header, key), ctypes.POINTER(_INTEGERS[kind]))
    return [int(values[i]) for i in range(length)]


class LlamaVocabulary:
    """One opened file."""

    def __init__(self, model: Any, file_bytes: int, kv_bytes: int) -> None:
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._buffer = ctypes.create_string_buffer(256)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.bos_text = self._special(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos_text = self._special(llama_cpp.llama_vocab_eos(self._vocab))
        self.bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.gap = self._gap()
        template = llama_cpp.llama_model_chat_template(model, None)
        self.chat_template = template.decode(errors="replace") if template else None
        arch = self._meta("general.architecture") or "unknown"
        self.facts = ModelFacts(
            architecture=arch,
            name=self._meta("general.name") or "",
            file_bytes=file_bytes,
            context_train=int(self._meta(f"{arch}.context_length") or 0),
            kv_bytes_per_token=kv_bytes,
            layers=int(self._meta(f"{arch}.block_count") or 0),
            embedding=int(self._meta(f"{arch}.embedding_length") or 0),
            vocabulary=self.size,
            capabilities=self._capabilities(arch),
            vocab_fingerprint=self._fingerprint(),
        )

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return token ids."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            ids = (ctypes.c_int32 * -count)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, -count, add_special, parse_special)
        return ids[:count]

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens, control tokens included."""
        return b"".join(map(self._piece, tokens))

    def _piece(self, token: int) -> bytes:
        length = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, True)
        buffer = self._buffer
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -length, 0, True)
        return bytes(buffer.raw[:length])

    def pair(self, query: str, document: str) -> list[int]:
        """Return a query and a document by the file's template for that, else with its marks between them."""
        vocab = self._vocab
        template = llama_cpp.llama_model_chat_template(self._model, b"rerank")
        if template:
            text = template.decode(errors="replace").replace("{query}", query).replace("{document}", document)
            return self.tokenise(text, add_special=True, parse_special=True)
        begin, sep = int(llama_cpp.llama_vocab_bos(vocab)), int(llama_cpp.llama_vocab_sep(vocab))
        end = int(llama_cpp.llama_vocab_eos(vocab))
        ends = [sep if end < 0 else end] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
        tokens = [begin] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
        tokens += self.tokenise(query, add_special=False, parse_special=False) + ends
        tokens += [sep] if llama_cpp.llama_vocab_get_add_sep(vocab) else []
        tokens += self.tokenise(document, add_special=False, parse_special=False) + ends
        return [t for t in tokens if t >= 0]

    def can_parse(self, gbnf: str) -> bool:
        """Say whether llama.cpp can read a grammar."""
        sampler = llama_cpp.llama_sampler_init_grammar(self._vocab, gbnf.encode(), b"root")
        if sampler:
            llama_cpp.llama_sampler_free(sampler)
        return bool(sampler)

    def close(self) -> None:
        """Free the model."""
        llama_cpp.llama_model_free(self._model)

    def _special(self, token: int) -> str:
        return "" if token < 0 else llama_cpp.llama_vocab_get_text(self._vocab, token).decode(errors="replace")

    def _meta(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(1024)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else None

    def _gap(self) -> Gap | None:
        kinds = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        prefix, suffix, middle = (int(kind(self._vocab)) for kind in kinds)
        if min(prefix, suffix, middle) < 0:
            return None
        file = int(llama_cpp.llama_vocab_fim_sep(self._vocab))
        return Gap(prefix, suffix, middle, file if file >= 0 else None)

    def _capabilities(self, arch: str) -> list[str]:
        """Tell from how the file pools, or that its attention looks ahead, what it was trained for."""
        pooling = self._meta(f"{arch}.pooling_type")
        if pooling == str(llama_cpp.LLAMA_POOLING_TYPE_RANK):
            return ["rerank"]
        is_pooled = pooling not in (None, str(llama_cpp.LLAMA_POOLING_TYPE_NONE))
        if is_pooled or self._meta(f"{arch}.attention.causal") == "false":
            return ["embeddings"]
        return ["chat", "completion"]

    def _fingerprint(self) -> str:
        """Return an identity of the token texts: streams can resume by ids only between equal ones."""
        texts = (llama_cpp.llama_vocab_get_text(self._vocab, i) for i in range(self.size))
        return digest(b"\0".join(t or b"" for t in texts))
