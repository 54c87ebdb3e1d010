"""The arrays of a llama.cpp batch, made once and filled anew for each decode. Imports llama_cpp."""

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import llama_cpp

from neuron.worker.engine import Chunk


class LlamaBatch:
    """At most so many rows, a token of one sequence each."""

    def __init__(self, sequences: int, rows: int) -> None:
        self.rows: list[int] = []
        """By chunk of the last fill: the row of its last token."""
        self._tokens: Any = (ctypes.c_int32 * rows)()
        self._positions: Any = (ctypes.c_int32 * rows)()
        self._outputs: Any = (ctypes.c_int8 * rows)()
        counts = (ctypes.c_int32 * rows)(*[1] * rows)
        ids = (ctypes.c_int32 * sequences)(*range(sequences))
        # Rows point at their sequence's id; as plain addresses, since a ctypes pointer each costs ten times that.
        self._sequences = (ctypes.c_size_t * rows)()
        self._addresses = [ctypes.addressof(ids) + 4 * i for i in range(sequences)]
        self._batch = cast(Any, llama_cpp.llama_batch())
        self._batch.token = ctypes.cast(self._tokens, ctypes.POINTER(ctypes.c_int32))
        self._batch.pos = ctypes.cast(self._positions, ctypes.POINTER(ctypes.c_int32))
        self._batch.n_seq_id = ctypes.cast(counts, ctypes.POINTER(ctypes.c_int32))
        self._batch.seq_id = ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        self._batch.logits = ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8))
        self._keep = (counts, ids)

    def fill(self, chunks: Sequence[Chunk]) -> Any:
        """Write the chunks and return what llama_decode takes."""
        tokens, positions, outputs = self._tokens, self._positions, self._outputs
        sequences, addresses, rows = self._sequences, self._addresses, self.rows
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
        return self._batch
