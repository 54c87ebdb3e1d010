"""Messages over a socket pair between the supervisor and one of its children.

The pair is made before the fork, so there is no address, no handshake and no stranger, and each end learns at once when
the other is gone. A message that crosses it wakes one process; over ZeroMQ it wakes two I/O threads as well, which took
five times as long (docs/benchmarks.md).

On the wire a message is the number of its parts (one byte), their lengths (32 bits each, little endian), the parts.
"""

import socket
import struct
from collections.abc import Sequence

from common.codec import MAX_FRAME_BYTES
from common.errors import ProtocolError

READ_BYTES = 64 * 1024


def pack(parts: Sequence[bytes]) -> bytes:
    """Return the bytes of one message."""
    return b"".join([struct.pack(f"<B{len(parts)}I", len(parts), *map(len, parts)), *parts])


class Unpacker:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._needed = 1
        """Bytes without which there is nothing new to see."""

    def feed(self, data: "bytes | memoryview[int]") -> list[list[bytes]]:
        """Take more bytes; return the messages that are complete now. Raises ProtocolError, which ends the stream."""
        self._data += data
        messages: list[list[bytes]] = []
        start = 0
        while len(self._data) - start >= self._needed:
            end = self._end_of_message(start)
            if end is None:
                continue
            messages.append(self._cut(start, end))
            start, self._needed = end, 1
        del self._data[:start]
        return messages

    def _end_of_message(self, start: int) -> int | None:
        """Return where the message ends; None if more is needed, or has to be looked at, than was before."""
        count = self._data[start]
        head = 1 + 4 * count
        if self._needed < head:
            self._needed = head
            return None
        total: int = head + sum(struct.unpack_from(f"<{count}I", self._data, start + 1))
        if total > MAX_FRAME_BYTES:
            raise ProtocolError(f"a message of {total} bytes; at most {MAX_FRAME_BYTES} are taken")
        if self._needed < total:
            self._needed = total
            return None
        return start + total

    def _cut(self, start: int, end: int) -> list[bytes]:
        count = self._data[start]
        parts, at = [], start + 1 + 4 * count
        for length in struct.unpack_from(f"<{count}I", self._data, start + 1):
            parts.append(bytes(self._data[at : at + length]))
            at += length
        assert at == end
        return parts


class FrameSocket:
    """One end of the pair. Waits only if the socket does (`setblocking`)."""

    def __init__(self, end: socket.socket, *, backlog_bytes: int = 0) -> None:
        """`backlog_bytes`: a send is refused while more than that waits here for room in the socket."""
        self._socket = end
        self._unpacker = Unpacker()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._backlog = bytearray()
        self._backlog_bytes = backlog_bytes

    def fileno(self) -> int:
        """Return the file descriptor, for polling."""
        return self._socket.fileno()

    @property
    def has_backlog(self) -> bool:
        """Whether something waits for room."""
        return bool(self._backlog)

    def receive(self) -> list[list[bytes]]:
        """Return the messages of one read. Raises EOFError when the other end is gone, ProtocolError for garbage."""
        try:
            count = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            count = 0
        if count == 0:
            raise EOFError("the other end is closed")
        return self._unpacker.feed(self._buffer[:count])

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send a message, or keep what the socket has no room for; False, and nothing is sent, if too much waits."""
        if self._backlog and not self.flush() and len(self._backlog) > self._backlog_bytes:
            return False
        self._backlog += pack(parts)
        self.flush()
        return True

    def flush(self) -> bool:
        """Send what waits as far as there is room; say whether all of it went. To a closed end everything goes."""
        while self._backlog:
            try:
                count = self._socket.send(self._backlog)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._backlog.clear()  # `receive` and the process's own end tell
                return True
            del self._backlog[:count]
        return True

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
