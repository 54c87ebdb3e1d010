"""Why a connection of the bus does not come about: nobody listens, or the two sides cannot agree on who they are."""

from enum import Enum

import zmq
from zmq.utils.monitor import parse_monitor_message

_MISMATCH = 0x11000002
"""ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH."""
_WATCHED = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.CLOSED
)


class Trouble(Enum):
    """What somebody who does listen has against us, or we against them."""

    OTHER_MECHANISM = "mechanism"
    """One side is encrypted, the other is not."""
    KEY_REFUSED = "refused"
    """Our key is not let in."""
    BROKEN_OFF = "broken off"
    """Without a word: they have not the key that we expect of them, or they are not encrypted."""


class Handshakes:
    """Watches one connecting socket. To be closed before it."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._events = socket.get_monitor_socket(_WATCHED)
        self._trouble: Trouble | None = None

    def trouble(self) -> Trouble | None:
        """Return what has come between the two sides; None: nothing, or nobody is there at all."""
        while self._events.poll(0):
            event = parse_monitor_message(self._events.recv_multipart())
            match event["event"]:
                case zmq.Event.HANDSHAKE_FAILED_AUTH:
                    self._trouble = Trouble.KEY_REFUSED
                case zmq.Event.HANDSHAKE_FAILED_PROTOCOL if event["value"] == _MISMATCH:
                    self._trouble = Trouble.OTHER_MECHANISM
                case zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                    # A side that is not encrypted ends some attempts so, and others with the mismatch.
                    self._trouble = self._trouble or Trouble.BROKEN_OFF
                case _:
                    self._trouble = None
        return self._trouble

    def close(self) -> None:
        """Watch no more."""
        self._socket.disable_monitor()
        self._events.close(linger=0)


def explain(trouble: Trouble, *, has_key: bool, own_key: str = "KEY") -> str:
    """Say what is the matter with a neuron and what to do. `has_key`: whether we are encrypted; `own_key`: as which."""
    match trouble:
        case Trouble.KEY_REFUSED:
            return f"it does not let this key in; on that host: neuronctl authorize gateway {own_key}"
        case Trouble.OTHER_MECHANISM if has_key:
            return "it speaks plain text, and a key of it is known here; on that host: neuron keygen"
        case Trouble.OTHER_MECHANISM:
            return "it is encrypted, and no key of it is known here; `neuron keygen` on that host says how to accept it"
        case Trouble.BROKEN_OFF if not has_key:
            return (
                "it breaks the handshake off: it is encrypted, and no key of it is known here, or it is no neuron; "
                "`neuron keygen` on that host says how to accept its key"
            )
        case Trouble.BROKEN_OFF:
            return (
                "it breaks the handshake off: it has another key than the one that is known here, or none; "
                "`neuron keygen` on that host shows its key"
            )
