"""A service manager for tests: a real $NOTIFY_SOCKET, and the sockets that it was given to keep."""

import array
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE_S = 20.0


class FakeServiceManager:
    """Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.heard: list[dict[str, str]] = []
        """Every datagram, oldest first."""
        self.kept: dict[str, int] = {}
        """File descriptors by name."""

    def __enter__(self) -> "FakeServiceManager":
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)

    def wait_for(self, is_it: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the first datagram, from now on, that satisfies `is_it`."""
        ends_at = time.monotonic() + PATIENCE_S
        for datagram in self._listen(ends_at):
            if is_it(datagram):
                return datagram
        raise AssertionError(f"was never said; heard: {self.heard}")

    def hear(self, for_s: float) -> list[dict[str, str]]:
        """Return what comes within so many seconds."""
        return list(self._listen(time.monotonic() + for_s))

    def _listen(self, ends_at: float) -> Iterator[dict[str, str]]:
        while (left := ends_at - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_LEN(array.array("i").itemsize))
                fields = dict(line.split("=", 1) for line in data.decode().split("\n"))
                for _, _, payload in ancillary:
                    self.kept[fields["FDNAME"]] = array.array("i", payload)[0]
                if "FDSTOREREMOVE" in fields and fields["FDNAME"] in self.kept:
                    os.close(self.kept.pop(fields["FDNAME"]))
                self.heard.append(fields)
                yield fields
