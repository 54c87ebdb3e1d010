"""The header of a GGUF as ggml itself reads it, and how large its tensors are. Imports llama_cpp."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_cpp._ggml import libggml

from neuron.models.header import DamagedHeader, read_header
from neuron.prep import llama_said
from neuron.prep.vocabulary import UnusableFile

_INTEGERS = {
    0: ctypes.c_uint8, 1: ctypes.c_int8, 2: ctypes.c_uint16, 3: ctypes.c_int16,
    4: ctypes.c_uint32, 5: ctypes.c_int32, 10: ctypes.c_uint64, 11: ctypes.c_int64,
}  # fmt: skip
"""By gguf_type. Asking for a value of another type than it has would abort the process."""
_STRING, _ARRAY = 8, 9
"""gguf_type."""
_F16_BYTES = 2
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
_tensor_name = _gguf("gguf_get_tensor_name", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
_data_offset = _gguf("gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p)


def check_header(path: str) -> None:
    """Read a header with distrust, before llama.cpp sees the file: it may abort on what it does not expect.

    Raises UnusableFile, OSError.
    """
    try:
        read_header(Path(path))
    except DamagedHeader as error:
        raise UnusableFile(str(error)) from None


@contextmanager
def open_header(path: str) -> Iterator[int]:
    """Yield the file's header as ggml read it."""
    llama_said.clear()
    header = _open(os.fsencode(path), _GgufParams(True, None))
    if not header:
        raise UnusableFile(f"its header is damaged or cut off: {llama_said.complaint()}")
    try:
        yield header
    finally:
        _free(header)


def parts(path: str, count: int) -> list[str]:
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


def tensor_bytes(path: str) -> dict[str, int]:
    """Return the sizes of a file's tensors by name; that of the file, headers and padding included, under "".

    Raises UnusableFile for a file that ends before its last tensor does: loading the vocabulary would not notice.
    """
    size = os.stat(path).st_size
    with open_header(path) as header:
        count = _tensor_count(header)
        ends = [_tensor_offset(header, i) + _tensor_size(header, i) for i in range(count)]
        sizes = {_tensor_name(header, i).decode(errors="replace"): _tensor_size(header, i) for i in range(count)}
        needed = _data_offset(header) + max(ends) if ends else 0
    if size < needed:
        raise UnusableFile(f"{Path(path).name} is truncated: {size} bytes of {needed}; download it again")
    return {"": size, **sizes}


def kv_bytes_per_token(header: int) -> int:
    """Return the bytes of f16 KV one token takes: heads × (key + value), over all layers."""
    key = _find(header, b"general.architecture")
    if key < 0 or _type(header, key) != _STRING:
        raise UnusableFile("its header names no general.architecture")
    arch = _str(header, key)
    layers = (numbers(header, arch + b".block_count") or [0])[0]
    heads = numbers(header, arch + b".attention.head_count") or [0]
    kv_heads = numbers(header, arch + b".attention.head_count_kv") or heads
    embedding = (numbers(header, arch + b".embedding_length") or [0])[0]
    head = embedding // max(heads) if max(heads) else 0
    width = (numbers(header, arch + b".attention.key_length") or [head])[0]
    width += (numbers(header, arch + b".attention.value_length") or [head])[0]
    total = sum(kv_heads) if len(kv_heads) > 1 else kv_heads[0] * layers
    return total * width * _F16_BYTES


def numbers(header: int, name: bytes) -> list[int]:
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
