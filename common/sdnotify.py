"""What a service manager is told: readiness, a status line, signs of life, and sockets to keep over a restart.

The protocol is sd_notify(3): datagrams of `KEY=value` lines to the socket in $NOTIFY_SOCKET.
"""

import array
import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

SEND_S = 1.0
"""A service manager that takes nothing for so long is given up for this message."""
FIRST_FD = 3
"""Descriptors that are handed over start here (sd_listen_fds(3))."""


class ServiceManager:
    """The service manager that started this process; without one every call does nothing.

    To be made by the process that the manager knows as its main one, before it has children: what it takes out of the
    environment is not for them.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watched, period_us = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        receiver, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "0")
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_watched = bool(period_us) and watched in ("", str(os.getpid()))
        self._status = ""
        self._inherited: dict[str, int] = {}
        if receiver == str(os.getpid()) and count.isdecimal():
            for number in range(int(count)):
                os.set_inheritable(FIRST_FD + number, False)
                self._inherited[names[number] if number < len(names) else ""] = FIRST_FD + number

    @property
    def is_present(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say that the service serves."""
        self._status = status
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say in one line how things are, where that has changed."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def beat(self) -> None:
        """Give a sign of life; to be called from the main loop itself, so that its standstill is one."""
        if self._is_watched:
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that the configuration is being read anew; ready() ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, within_s: float) -> None:
        """Say that the end has begun, and how long it may take, which only the configuration knows."""
        self._status = status
        self._send(f"STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    def keep(self, name: str, kept: socket.socket) -> None:
        """Have the manager hold a socket, so that clients find it while this service restarts."""
        # FDPOLL=0: the manager is not to judge by itself whether the socket is still of use.
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", kept.fileno())

    def drop(self, name: str) -> None:
        """Have the manager close what it holds under a name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def take(self, name: str) -> socket.socket | None:
        """Return the socket that was kept under a name, or None. It belongs to the caller."""
        descriptor = self._inherited.pop(name, None)
        return None if descriptor is None else socket.socket(fileno=descriptor)

    def _send(self, text: str, *descriptors: int) -> None:
        if not self._address:
            return
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.settimeout(SEND_S)
                line.connect(self._address)
                line.sendmsg([text.encode()], ancillary)
        except OSError as error:
            log.warning("the service manager was not told %r: %s", text.split("\n")[0], error)
