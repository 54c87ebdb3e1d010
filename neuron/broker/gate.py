"""Who may speak to this neuron: answers ZeroMQ's question at each handshake (ZAP, RFC 27), and judges each message.

A handshake is not enough: it is over when a key is revoked, and the connection lives on.
"""

import contextlib
import logging
import time
from pathlib import Path

import zmq

from common.errors import Code, ConfigError, ProtocolError, RequestError
from common.key_files import stamp
from common.keys import fingerprint, parse_key, read_pair
from common.messages import Join, ToNeuron
from common.sockets import Channel
from neuron.broker.authorized import AUTHORIZED_FILE, KEY_FILE, Role, authorize, check_role, read_authorized
from neuron.broker.invitations import INVITATIONS_FILE, read_invitations, use_up

log = logging.getLogger(__name__)

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ROUTING_IDS = 4096
"""Bindings that are remembered; the oldest is dropped, and made anew by that peer's next message."""
COMPLAINT_S = 5.0
"""Refused handshakes are logged no more often than this."""
COMMENT_CHARS = 64
"""Of a comment that comes over the bus."""


class Gate:
    """The keys that are let in, and the routing ids that belong to them."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", folder: Path) -> None:
        """Start to answer handshakes; to be made before the socket that it guards. Raises ConfigError.

        `folder`: of neuron.key, authorized_keys and invitations.
        """
        self._key_file = folder / KEY_FILE
        self._authorized = folder / AUTHORIZED_FILE
        self._invitations = folder / INVITATIONS_FILE
        self._key_stamp = stamp(self._key_file)
        self.pair = read_pair(self._key_file)
        self._stamps = self._look()
        self._roles, self._invited = self._read()
        self._owners: dict[str, str] = {}
        self._complained_at = -COMPLAINT_S
        socket = context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(ZAP_ADDRESS)
        self._channel = Channel(socket, self._answer)

    def close(self) -> None:
        """Answer no more handshakes."""
        self._channel.close()

    def role(self, user: str) -> str | None:
        """Return what a key is authorised as now; None: it is not."""
        return self._roles.get(user) or ("invited" if self._invited.get(user, 0.0) > time.time() else None)

    def judge(self, user: str, peer: str, message: ToNeuron) -> None:
        """Check one message of an authorised key. Raises RequestError for a role that may not send it, and
        ProtocolError for a routing id that belongs to another key.
        """
        if self._owners.setdefault(peer, user) != user:
            raise ProtocolError(f"key {user[:16]}… uses a routing id that belongs to another key")
        if len(self._owners) > ROUTING_IDS:
            del self._owners[next(iter(self._owners))]
        check_role(self.role(user) or "invited", message, f"the key {user}")

    def owns(self, peer: str) -> bool:
        """Say whether a routing id belongs to a key."""
        return peer in self._owners

    def admit(self, user: str, join: Join) -> None:
        """Authorise the key that an invited peer brings, and use its invitation up. Raises RequestError."""
        comment = "".join(c for c in join.comment if c.isprintable())[:COMMENT_CHARS]
        try:
            key = parse_key(join.key, "key").hex()
        except ConfigError as error:
            raise RequestError(Code.INVALID_VALUE, str(error)) from None
        try:
            if not use_up(self._invitations, user, time.time()):
                raise RequestError(Code.PERMISSION_DENIED, "this invitation has been used, or is over")
            authorize(self._authorized, "gateway", key, comment)
        except ConfigError as error:
            log.error("an invited gateway cannot be let in: %s", error)
            remedy = f"on that host, as root: neuronctl authorize gateway {key}"
            raise RequestError(Code.INTERNAL_ERROR, f"its key cannot be kept there ({error}); {remedy}") from None
        log.info("a gateway has joined by invitation: %s, %s", key, comment or "no comment")

    def reload(self) -> list[str]:
        """Read the authorised keys if a file has changed; return the peers whose keys may do less than before.

        A file with a mistake changes nothing, and is logged.
        """
        stamps = self._look()
        if stamps == self._stamps:
            return []
        self._stamps = stamps
        return self._take()

    def renew(self) -> bool:
        """Read the neuron's own key if its file has changed; say whether it is another one now."""
        seen = stamp(self._key_file)
        if seen == self._key_stamp:
            return False
        self._key_stamp = seen
        try:
            pair = read_pair(self._key_file)
        except ConfigError as error:
            log.error("the key stays as it was: %s", error)
            return False
        if pair == self.pair:
            return False
        self.pair = pair
        self._take()
        log.warning("the key is another one now: %s, %s; all connections are opened anew",
                    pair.public.hex(), fingerprint(pair.public))  # fmt: skip
        return True

    def _take(self) -> list[str]:
        try:
            roles, self._invited = self._read()
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

    def _read(self) -> tuple[dict[str, Role], dict[str, float]]:
        # Who can read the neuron's own secret key is root or the service itself: its administrator.
        roles: dict[str, Role] = {**read_authorized(self._authorized), self.pair.public.hex(): "admin"}
        return roles, read_invitations(self._invitations)

    def _look_for_invitations(self) -> None:
        """Take those that were written a moment ago: who has been sent one may be here before the next reload()."""
        if stamp(self._invitations) != self._stamps[1]:
            with contextlib.suppress(ConfigError):  # reload() says what is wrong
                self._invited = read_invitations(self._invitations)

    def _look(self) -> tuple[object, object]:
        return stamp(self._authorized), stamp(self._invitations)

    def _answer(self, frames: list[bytes]) -> None:
        version, request, _, address, _, mechanism, *credentials = [*frames, *[b""] * (7 - len(frames))]
        user = credentials[0].hex() if mechanism == b"CURVE" else ""
        if self.role(user) is None:
            self._look_for_invitations()
        if self.role(user) is not None:
            self._channel.send([version, request, b"200", b"OK", user.encode(), b""])
            return
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_S:
            self._complained_at = now
            log.warning("a connection from %s is refused: its key %s is not in %s",
                        address.decode(errors="replace"), user or "is missing and", self._authorized)  # fmt: skip
        self._channel.send([version, request, b"400", b"unknown key", b"", b""])
