"""The supervisor's messages with gateways and neuronctl, and the lines to its own children. Shell; decides nothing.

Tokens are relayed from worker to gateway without being decoded. A gateway that is behind is *held*: a few frames wait
for it here, the workers merge its tokens until it goes on, and nobody else notices.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from common.codec import decode_from_prep, decode_from_worker, encode
from common.errors import ProtocolError
from common.messages import TOKENS_FRAME, FromNeuron, Go, Hold, ToPrep, ToWorker
from neuron.broker.doors import Doors
from neuron.broker.gate import Gate
from neuron.broker.line import Line
from neuron.discovery import ProbeReading
from neuron.supervisor.events import Event, PeerLost, PeerSaid, PrepSaid, ProbeRead, WorkerSaid

log = logging.getLogger(__name__)

HELD_FRAMES = 64
"""Frames that wait for one held gateway; more, and it is given up."""
FLUSH_S = 0.005
"""Between attempts to send to held gateways."""
COMPLAINT_S = 5.0
"""Undecodable frames are logged no more often than this."""


class Bus:
    """The socket, the lines, and the frames that wait."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        listen: str,
        post: Callable[[Event], None],
        gate: Gate | None = None,
        local: Path | None = None,
    ) -> None:
        """Bind the public socket; `post` takes every event. Raises zmq.ZMQError, for example EADDRINUSE.

        `gate`: who may speak; None: everybody, in plain text. `local`: a socket file for who administers this host.
        """
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, Line] = {}
        self._workers: set[str] = set()
        self._held: dict[str, deque[bytes]] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._complained_at = 0.0
        self.undecodable = 0
        """Frames from either side that were no messages."""
        self._doors = Doors(
            context,
            listen,
            gate=gate,
            local=local,
            hear=lambda peer, message: post(PeerSaid(peer, message)),
            lose=self._give_up,
            complain=partial(self._complain, "a peer"),
        )

    def close(self) -> None:
        """Close the public socket and all lines."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._doors.close()
        for line in self._lines.values():
            line.close()

    def adopt(self, incarnation: str, role: Literal["worker", "prep", "probe"], end: socket.socket) -> None:
        """Take messages of a new child; a worker learns which gateways are held."""
        receive = {"worker": self._from_worker, "prep": self._from_prep, "probe": self._from_probe}[role]
        self._lines[incarnation] = Line(end, partial(receive, incarnation))
        if role == "worker":
            self._workers.add(incarnation)
            for peer in self._held:
                self.send_child(incarnation, Hold(gateway=peer))

    def dismiss(self, incarnation: str) -> None:
        """Take the last words of a child that is gone; nothing of it may follow the news of its end."""
        line = self._lines.pop(incarnation, None)
        if line is not None:
            line.drain()
            line.close()
        self._workers.discard(incarnation)

    def send_child(self, incarnation: str, message: ToWorker | ToPrep) -> None:
        """Send to a worker or prep. One that cannot take it is dead or stuck, which its exit or the watchdog tells."""
        line = self._lines.get(incarnation)
        if line is None or not line.send(encode(message)):
            log.warning("child %s does not take a message", incarnation[:8])

    def nudge(self, probe: str) -> None:
        """Have the probe read at once. One that does not take it hangs in the driver, which its silence tells."""
        line = self._lines.get(probe)
        if line is not None:
            line.send(b"")

    def send_peer(self, peer: str, message: FromNeuron) -> None:
        """Send to a gateway or neuronctl."""
        self._send(peer, encode(message))

    def _send(self, peer: str, payload: bytes) -> None:
        waiting = self._held.get(peer)
        if waiting is not None:
            waiting.append(payload)
            if len(waiting) > HELD_FRAMES:
                self._give_up(peer, f"{HELD_FRAMES} messages behind")
            return
        try:
            self._doors.send(peer, payload)
        except zmq.Again:
            log.warning("gateway %s is behind; holding its tokens", peer[:8])
            self._held[peer] = deque([payload])
            self._tell_workers(Hold(gateway=peer))
            if self._flush_timer is None:
                self._flush_timer = self._loop.call_later(FLUSH_S, self._flush)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._give_up(peer, "disconnected")

    def _flush(self) -> None:
        self._flush_timer = None
        for peer, waiting in list(self._held.items()):
            try:
                while waiting:
                    self._doors.send(peer, waiting[0])
                    waiting.popleft()
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._give_up(peer, "disconnected")
                continue
            del self._held[peer]
            self._tell_workers(Go(gateway=peer))
        if self._held:
            self._flush_timer = self._loop.call_later(FLUSH_S, self._flush)

    def _give_up(self, peer: str, why: str) -> None:
        if self._held.pop(peer, None) is not None:
            self._tell_workers(Go(gateway=peer))
        self._post(PeerLost(peer, why))

    def _tell_workers(self, message: Hold | Go) -> None:
        for incarnation in self._workers:
            self.send_child(incarnation, message)

    def _from_worker(self, worker: str, parts: list[bytes]) -> None:
        try:
            if len(parts) != 3:
                raise ProtocolError(f"{len(parts)} parts instead of three")
            gateway, kind, payload = parts
            if kind == TOKENS_FRAME:
                self._send(_name(gateway), payload)
            else:
                self._post(WorkerSaid(worker, _name(gateway), decode_from_worker(payload)))
        except ProtocolError as error:
            self._complain("a worker", error)

    def _from_prep(self, prep: str, parts: list[bytes]) -> None:
        try:
            self._post(PrepSaid(prep, decode_from_prep(b"".join(parts))))
        except ProtocolError as error:
            self._complain("prep", error)

    def _from_probe(self, probe: str, parts: list[bytes]) -> None:
        try:
            self._post(ProbeRead(probe, msgspec.json.decode(b"".join(parts), type=ProbeReading)))
        except msgspec.DecodeError as error:
            self._complain("the probe", ProtocolError(str(error)))

    def _complain(self, who: str, error: ProtocolError) -> None:
        self.undecodable += 1
        now = time.monotonic()
        if now - self._complained_at > COMPLAINT_S:
            self._complained_at = now
            log.warning("undecodable frame from %s: %s (%d so far)", who, error, self.undecodable)


def _name(frame: bytes) -> str:
    try:
        return frame.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("a routing id that is not an incarnation") from None
