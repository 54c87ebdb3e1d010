"""Who may speak to this neuron: answers ZeroMQ's question at each handshake (ZAP, RFC 27), and judges each message.

A handshake is not enough: it is over when a key is revoked, and the connection lives on.
"""

import logging
import os
import time
from pathlib import Path

import zmq

from common.errors import Code, ConfigError, ProtocolError, RequestError
from common.keys import KeyPair
from common.messages import Hello, ToNeuron
from common.sockets import Channel
from neuron.broker.authorized import ALLOWED, Role, read_authorized

log = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ROUTING_IDS = 4096
"""Bindings that are remembered; the oldest is dropped, and made anew by that peer's next message."""
COMPLAINT_S = 5.0
"""Refused handshakes are logged no more often than this."""


class Gate:
    """The keys that are let in, and the routing ids that belong to them."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", pair: KeyPair, authorized_keys: Path) -> None:
        """Start to answer handshakes; to be made before the socket that it guards. Raises ConfigError."""
        self.pair = pair
        self._file = authorized_keys
        self._stamp = _stamp(authorized_keys)
        self._roles = self._read()
        self._owners: dict[str, str] = {}
        self._complained_at = -COMPLAINT_S
        socket = context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ZAP_ADDRESS)
        self._channel = Channel(socket, self._answer)

    def close(self) -> None:
        """Answer no more handshakes."""
        self._channel.close()

    def knows(self, user: str) -> bool:
        """Say whether a key is authorised now."""
        return user in self._roles

    def judge(self, user: str, peer: str, message: ToNeuron) -> None:
        """Check one message of an authorised key. Raises RequestError for a role that may not send it, and
        ProtocolError for a routing id that belongs to another key.
        """
        if self._owners.setdefault(peer, user) != user:
            raise ProtocolError(f"key {user[:16]}… uses a routing id that belongs to another key")
        if len(self._owners) > ROUTING_IDS:
            del self._owners[next(iter(self._owners))]
        role = self._roles[user]
        kind = type(message)
        is_posing = isinstance(message, Hello) and message.role == "gateway" and role != "gateway"
        if is_posing or kind not in ALLOWED[role]:
            what = "Hello as a gateway" if is_posing else kind.__name__
            text = f"the key {user} is authorised as {role}, which may not send {what}; see neuronctl authorize"
            raise RequestError(Code.PERMISSION_DENIED, text)

    def reload(self) -> list[str]:
        """Read authorized_keys if it has changed; return the peers whose keys may do less than before.

        A file with a mistake changes nothing, and is logged.
        """
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return []
        self._stamp = stamp
        try:
            roles = self._read()
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)
            return []
        before, self._roles = self._roles, roles
        lowered = {u for u, role in before.items() if roles.get(u) != role}
        log.info("authorized_keys was read: %d keys, %d of them new, %d gone or changed",
                 len(roles), len(roles.keys() - before.keys()), len(lowered))  # fmt: skip
        peers = [p for p, user in self._owners.items() if user in lowered]
        for peer in peers:
            del self._owners[peer]
        return peers

    def _read(self) -> dict[str, Role]:
        # Who can read the neuron's own secret key is root or the service itself: its administrator.
        return {**read_authorized(self._file), self.pair.public.hex(): "admin"}

    def _answer(self, frames: list[bytes]) -> None:
        version, request, _, address, _, mechanism, *credentials = [*frames, *[b""] * (7 - len(frames))]
        user = credentials[0].hex() if mechanism == b"CURVE" else ""
        if user in self._roles:
            self._channel.send([version, request, b"200", b"OK", user.encode(), b""])
            return
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_S:
            self._complained_at = now
            log.warning("a connection from %s is refused: its key %s is not in %s",
                        address.decode(errors="replace"), user or "is missing and", self._file)  # fmt: skip
        self._channel.send([version, request, b"400", b"unknown key", b"", b""])


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
