"""How the gateway processes tell the arbiter that they serve, and what the fleet is doing."""

import contextlib
import socket
from collections.abc import Iterable

from cortex.fleet.view import Node

_LONGEST = 1024
"""Bytes of a report; a status line is for one look."""


def describe(nodes: Iterable[Node]) -> str:
    """Return one line about the neurons as a gateway process sees them."""
    known = list(nodes)
    here = [n for n in known if n.is_here]
    loading = sorted({m.id for n in here for m in n.resident.values() if m.status == "loading"})
    return f"{len(here)} of {len(known)} neurons answer" + (f"; loading {', '.join(loading)}" if loading else "")


class Readiness:
    """Any number of writers, one reader; to be made before the fork. Whoever writes never waits."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._last = ""

    def report(self, line: str) -> None:
        """Say how the fleet looks from a gateway process that serves, where that has changed."""
        if line != self._last:
            # A full line means that the arbiter is behind; the same report is tried again at the next call.
            with contextlib.suppress(BlockingIOError):
                self._writer.send(line.encode()[:_LONGEST])
                self._last = line

    def latest(self) -> str | None:
        """Return the newest report since the last call, None if there is none."""
        line = None
        with contextlib.suppress(BlockingIOError):
            while True:
                line = self._reader.recv(_LONGEST).decode(errors="replace")
        return line

    def close(self) -> None:
        """Close both ends."""
        self._reader.close()
        self._writer.close()
