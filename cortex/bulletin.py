"""What the arbiter tells gateway processes that are already running: the latest notice, in memory they all share."""

import os
import struct

_HEADER = struct.Struct("<QQ")
"""Number of the notice, its bytes. Written after the notice itself."""


class Bulletin:
    """One writer, any number of readers. To be made before the fork; readers poll."""

    def __init__(self) -> None:
        self._file = os.memfd_create("cortex-bulletin", os.MFD_CLOEXEC)
        self._number = 0
        os.pwrite(self._file, _HEADER.pack(0, 0), 0)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._file)

    def publish(self, notice: bytes) -> None:
        """Replace the notice."""
        self._number += 1
        # While the header says 0 there is nothing to read, so nobody takes half of one notice and half of another.
        os.pwrite(self._file, _HEADER.pack(0, 0), 0)
        os.pwrite(self._file, notice, _HEADER.size)
        os.pwrite(self._file, _HEADER.pack(self._number, len(notice)), 0)

    def read(self, seen: int) -> tuple[int, bytes] | None:
        """Return the notice and its number, None if there is none newer than number `seen`."""
        header = os.pread(self._file, _HEADER.size, 0)
        number, size = _HEADER.unpack(header)
        if number <= seen:
            return None
        notice = os.pread(self._file, size, _HEADER.size)
        if os.pread(self._file, _HEADER.size, 0) != header:
            return None  # it is being replaced; the next look finds the new one
        return number, notice
