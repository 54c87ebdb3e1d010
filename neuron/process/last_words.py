"""What children write to stderr: passed on as it comes, and remembered after their end."""

import asyncio
import contextlib
import os
from collections import deque

LINES = 500
"""Of each child; what an abort of llama.cpp writes last fits."""
LONGEST = 4096
"""Characters of a line that are kept."""
CHUNK = 65536
STDERR = 2


class LastWords:
    """The last lines of every child, by its name; a successor goes on where its predecessor ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, deque[str]] = {}
        self._counts: dict[str, int] = {}
        self._rest: dict[int, bytes] = {}
        """By file: a line that has not ended."""

    def listen(self, name: str, file: int) -> None:
        """Take over the read end of a child's stderr."""
        os.set_blocking(file, False)
        self._rest[file] = b""
        self._loop.add_reader(file, self._read, name, file)

    def close(self, name: str, file: int) -> None:
        """Take what is left after a child's end, and close the file."""
        while self._read(name, file):
            pass
        self._loop.remove_reader(file)
        os.close(file)
        rest = self._rest.pop(file)
        if rest:
            self._keep(name, [rest])

    def since(self, name: str, number: int) -> tuple[int, list[str]]:
        """Return the number of a child's last line, and the remembered ones after line `number`."""
        last, lines = self._counts.get(name, 0), self._lines.get(name, deque())
        missing = max(0, min(last - number, len(lines)))
        return last, list(lines)[len(lines) - missing :]

    def _read(self, name: str, file: int) -> bool:
        """Take what there is; False if there is nothing."""
        try:
            data = os.read(file, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(file)  # closed by the child; close() comes with its end
            return False
        with contextlib.suppress(OSError):  # nobody reads our own stderr: no reason to lose the words as well
            os.write(STDERR, data)
        *lines, rest = (self._rest[file] + data).split(b"\n")
        self._rest[file] = rest[-LONGEST:]
        self._keep(name, lines)
        return True

    def _keep(self, name: str, lines: list[bytes]) -> None:
        kept = self._lines.setdefault(name, deque(maxlen=LINES))
        kept.extend(line[:LONGEST].decode(errors="replace") for line in lines)
        self._counts[name] = self._counts.get(name, 0) + len(lines)
