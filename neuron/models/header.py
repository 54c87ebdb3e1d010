"""The header of a GGUF file, read without llama.cpp: a damaged or hostile file costs an error, never a process.

The format is described in ggml's docs/gguf.md. Only plain values are kept; the token lists are passed over.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Value = int | float | bool | str

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS, MAX_TENSORS = 65_536, 1_000_000
MAX_BYTES = 64 * 2**20
"""Of a header; the largest vocabularies take about 16 MiB."""
_KEPT_TEXT = 64 * 1024
"""Longer texts (chat templates, licences) are passed over."""
_FIRST_READ = 4 * 2**20
_MAX_DIMENSIONS = 8
_ALIGNMENT = "general.alignment"

_SCALARS: dict[int, struct.Struct] = {
    kind: struct.Struct("<" + letter)
    for kind, letter in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}  # fmt: skip
"""By gguf_type."""
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""ggml_type → elements and bytes of a block."""


class DamagedHeader(Exception):
    """The file is no GGUF, is cut off, or claims what cannot be; the text says which."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    values: dict[str, Value]
    tensors: int
    file_bytes: int
    needed_bytes: int
    """The file is truncated if it is shorter. Tensors of a type newer than this table count without their last one."""

    @property
    def architecture(self) -> str | None:
        """`general.architecture`."""
        return self.text("general.architecture")

    @property
    def is_truncated(self) -> bool:
        """Say whether the end of the file is missing."""
        return self.file_bytes < self.needed_bytes

    def text(self, key: str) -> str | None:
        """Return a text, None if there is none of that name."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return a whole number, None if there is none of that name."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_header(path: Path) -> Header:
    """Read a file's header. Raises DamagedHeader, OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size == 0:
            raise DamagedHeader("it is empty")
        return _Reader(file, size).header()


class _Reader:
    """A header in a buffer that grows as it is needed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._buffer = bytearray()
        self._at = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise DamagedHeader("it is no GGUF file (it does not begin with 'GGUF')")
        version = self._number(_U32)
        if version not in VERSIONS:
            kind = "a big-endian file" if version & 0xFFFF == 0 else f"GGUF version {version}"
            raise DamagedHeader(f"it is {kind}, which llama.cpp does not read here; convert it again")
        tensors, keys = self._number(_U64), self._number(_U64)
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise DamagedHeader(f"its header is damaged: it claims {tensors} tensors and {keys} keys")
        values: dict[str, Value] = {}
        for _ in range(keys):
            key = self._text(len_limit=_KEPT_TEXT) or ""
            value = self._value(self._number(_U32))
            if value is not None:
                values[key] = value
        end = max((self._tensor() for _ in range(tensors)), default=0)
        alignment = values.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise DamagedHeader(f"its header is damaged: {_ALIGNMENT} is {alignment}")
        data = -(-self._at // alignment) * alignment
        return Header(values, tensors, self._size, data + end if tensors else self._at)

    def _value(self, kind: int) -> Value | None:
        """Read a value; None: a list or a long text, passed over."""
        if kind == _STRING:
            return self._text(len_limit=_KEPT_TEXT, is_kept=False)
        if kind == _ARRAY:
            self._pass_array()
            return None
        value: Value = self._scalar(self._layout(kind))
        return value

    def _pass_array(self) -> None:
        kind, count = self._number(_U32), self._number(_U64)
        if kind != _STRING:
            self._pass(self._layout(kind).size * count)
            return
        unpack = _U64.unpack_from
        while count:
            at, buffer = self._at, self._buffer
            try:
                while count:  # hundreds of thousands of tokens: nothing else in this loop
                    at += 8 + unpack(buffer, at)[0]
                    count -= 1
                    self._at = at
            except (struct.error, OverflowError):
                self._need(8)
        self._pass(0)

    def _layout(self, kind: int) -> struct.Struct:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise DamagedHeader(f"its header is damaged: {kind} is no type of a value")
        return layout

    def _tensor(self) -> int:
        """Read a tensor's description; return where it ends within the data."""
        self._text(len_limit=_KEPT_TEXT)
        dimensions = self._number(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise DamagedHeader(f"its header is damaged: a tensor with {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= self._number(_U64)
        kind, offset = self._number(_U32), self._number(_U64)
        per_block, block_bytes = BLOCKS.get(kind, (1, 0))
        return offset + elements // per_block * block_bytes

    def _text(self, *, len_limit: int, is_kept: bool = True) -> str | None:
        length = self._number(_U64)
        if length > len_limit:
            if is_kept:
                raise DamagedHeader(f"its header is damaged: a name of {length} bytes")
            self._pass(length)
            return None
        return self._take(length).decode(errors="replace")

    def _number(self, layout: struct.Struct) -> int:
        return int(self._scalar(layout))

    def _scalar(self, layout: struct.Struct) -> int | float | bool:
        self._need(layout.size)
        (value,) = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        result: int | float | bool = value
        return result

    def _take(self, length: int) -> bytes:
        self._need(length)
        self._at += length
        return bytes(self._buffer[self._at - length : self._at])

    def _pass(self, length: int) -> None:
        self._need(length)
        self._at += length

    def _need(self, length: int) -> None:
        end = self._at + length
        if end > self._size:
            raise DamagedHeader(f"its header is damaged or cut off: the file ends at byte {self._size}")
        if end > MAX_BYTES:
            raise DamagedHeader(f"its header is larger than {MAX_BYTES // 2**20} MiB")
        while len(self._buffer) < end:
            piece = self._file.read(max(_FIRST_READ, end - len(self._buffer)))
            if not piece:
                raise DamagedHeader("it became shorter while it was read")
            self._buffer += piece
