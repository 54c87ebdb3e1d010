"""A TCP relay between a gateway and a neuron, which can be cut, stand still, or swallow what goes one way."""

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["both", "to-neuron", "to-gateway"]


@dataclass
class _Pair:
    ends: tuple[socket.socket, socket.socket]
    """Gateway's, neuron's."""
    pending: dict[socket.socket, bytearray] = field(default_factory=dict)


class Proxy(threading.Thread):
    """Listens on a free port; `cut` closes every connection and refuses new ones, `swallow` loses what goes one way."""

    def __init__(self, port: int) -> None:
        """`port`: the neuron's, on loopback."""
        super().__init__(name="proxy", daemon=True)
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._is_cut = False
        self._is_frozen = False
        self._lost: Way | None = None
        self._is_over = False
        self._wake_out, self._wake_in = socket.socketpair()
        self._pairs: list[_Pair] = []
        self.start()

    def cut(self) -> None:
        """Close everything, and refuse until `heal`."""
        self._is_cut = True
        self._wake()

    def swallow(self, way: Way) -> None:
        """Lose what goes this way, silently, until `heal`. The connections are gone with it: a stream with a hole in it
        is nothing that TCP does.
        """
        self._lost = way

    def freeze(self) -> None:
        """Let nothing through until `heal`; all of it arrives then, as after a network that was away for a moment."""
        self._is_frozen = True

    def heal(self) -> None:
        """Let everything through again; what was swallowed into ends its connection."""
        was_lost, self._lost, self._is_cut, self._is_frozen = self._lost, None, False, False
        if was_lost is not None:
            self._reset = True
        self._wake()

    def close(self) -> None:
        """End the thread."""
        self._is_over = True
        self._wake()
        self.join(5)

    _reset = False

    def _wake(self) -> None:
        self._wake_in.send(b"x")

    def run(self) -> None:
        """Relay until closed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not self._is_over:
                ready = selector.select(1.0)
                while self._is_frozen and not self._is_over:
                    time.sleep(0.01)
                for key, _ in ready:
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    if end is self._listener:
                        self._accept(selector)
                    elif end is self._wake_out:
                        self._wake_out.recv(100)
                    else:
                        self._relay(selector, end)
                if self._is_cut or self._reset:
                    self._reset = False
                    for pair in list(self._pairs):
                        self._drop(selector, pair)
            for pair in list(self._pairs):
                self._drop(selector, pair)
        for each in (self._listener, self._wake_in, self._wake_out):
            each.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        near, _ = self._listener.accept()
        if self._is_cut:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=1.0)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.settimeout(5.0)
            selector.register(end, selectors.EVENT_READ)
        self._pairs.append(_Pair((near, far)))

    def _relay(self, selector: selectors.BaseSelector, end: socket.socket) -> None:
        pair = next((p for p in self._pairs if end in p.ends), None)
        if pair is None:
            return
        near, far = pair.ends
        other, way = (far, "to-neuron") if end is near else (near, "to-gateway")
        try:
            data = end.recv(65536)
            if data and self._lost not in ("both", way):
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(selector, pair)

    def _drop(self, selector: selectors.BaseSelector, pair: _Pair) -> None:
        self._pairs.remove(pair)
        for end in pair.ends:
            selector.unregister(end)
            end.close()
