"""The socket to one neuron: opened anew where no handshake succeeds, with each of the neuron's keys in turn."""

import logging
from collections.abc import Callable, Sequence

import zmq

from common.handshakes import Handshakes, explain
from common.keys import Credentials
from common.sockets import Channel, bus_dealer

log = logging.getLogger(__name__)

REOPEN_S = 2.0
"""Between sockets to a neuron that takes no connection: after a refused handshake libzmq does not try again by itself,
and the key may be authorised meanwhile."""


class Connection:
    """One DEALER at a time, which sends and receives frames."""

    def __init__(
        self,
        name: str,
        address: str,
        incarnation: str,
        receive: Callable[[list[bytes]], None],
        clock: Callable[[], float],
        credentials: Sequence[Credentials] = (),
    ) -> None:
        """`name`: the neuron's. `clock`: monotonic seconds. `credentials`: one for each key it may have; none: plain
        text.
        """
        self._name = name
        self._address = address
        self._incarnation = incarnation
        self._receive = receive
        self._clock = clock
        self._credentials = tuple(credentials)
        self._turn = 0
        """Index of the credentials in use."""
        self._untried = 0
        """Keys that have not been tried since one was good."""
        self._is_renewal_told = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._channel: Channel | None = None
        self._handshakes: Handshakes | None = None
        self._opened_at = -1e9

    def open(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """Connect; retry() does the rest."""
        self._context = context
        self._untried = len(self._credentials) - 1
        self._connect()

    def close(self) -> None:
        """Disconnect."""
        if self._handshakes is not None:
            self._handshakes.close()
            self._handshakes = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def send(self, frame: bytes) -> bool:
        """Send one frame; False if the connection takes none now."""
        if self._channel is None:
            return False
        try:
            self._channel.send([frame])
        except zmq.Again:
            return False
        return True

    def can_send(self) -> bool:
        """Say whether a frame would be taken now."""
        return self._channel is not None and self._channel.can_send()

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._channel is not None

    def retry(self) -> str | None:
        """Open another socket where that may help; return what keeps a neuron that is there from being spoken to.

        To be called while nothing can be sent.
        """
        trouble = None if self._handshakes is None else self._handshakes.trouble()
        own = self._own()
        if trouble is not None and self._untried > 0:
            self._untried -= 1
            self._turn += 1
            self._connect()
            return None
        if self._context is not None and self._clock() - self._opened_at >= REOPEN_S:
            self._turn += 1
            self._untried = len(self._credentials) - 1
            self._connect()
        if trouble is None:
            return None
        return explain(trouble, has_key=own is not None, own_key="KEY" if own is None else own.pair.public.hex())

    def settle(self) -> None:
        """Take note that the neuron has answered: what it has been spoken to with is right."""
        own = self._own()
        self._untried = len(self._credentials) - 1
        if own is not None and self._untried > 0 and own == self._credentials[-1] and not self._is_renewal_told:
            self._is_renewal_told = True
            log.info("neuron %s has taken its next key; accept no other any more: cortex trust %s %s --replace",
                     self._name, self._name, own.neuron.hex())  # fmt: skip

    def adopt(self, credentials: Sequence[Credentials]) -> bool:
        """Take other keys of the neuron; say whether the connection goes on, since its key is still accepted."""
        own = self._own()
        self._credentials = tuple(credentials)
        self._untried = len(self._credentials) - 1
        self._is_renewal_told = False
        if own is not None and own in self._credentials:
            self._turn = self._credentials.index(own)
            return True
        if own is None and not self._credentials:
            return True
        self._turn = 0
        if self._context is not None:
            self._connect()
        return False

    def _own(self) -> Credentials | None:
        return self._credentials[self._turn % len(self._credentials)] if self._credentials else None

    def _connect(self) -> None:
        assert self._context is not None
        self.close()
        self._opened_at = self._clock()
        dealer = bus_dealer(self._context, self._address, self._incarnation, self._own())
        self._handshakes = Handshakes(dealer)
        self._channel = Channel(dealer, self._receive)
