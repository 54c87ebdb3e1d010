"""What has happened in the fleet lately, as one gateway process has seen it and as the neurons tell. Pure."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from common.messages import EventSubject, LifecycleEvent, NodeState

KEPT = 500


class Happened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event."""

    serial: int
    """Rises by one with each event that this process hears of; they are not in the order of their times."""
    at: float
    """Seconds since 1970."""
    node: str
    level: str
    subject: EventSubject
    what: str
    reason: str | None = None
    device: str | None = None
    model: str | None = None
    details: dict[str, str] = {}


class History:
    """The last events of all neurons."""

    def __init__(self, wall: Callable[[], float]) -> None:
        """`wall`: seconds since 1970."""
        self._wall = wall
        self._serial = 0
        self._events: deque[Happened] = deque(maxlen=KEPT)
        self._heard: dict[str, tuple[str, int]] = {}
        """By node: its incarnation, and the last of its events that is known."""

    def learn(self, node: str, state: NodeState) -> None:
        """Take what a pushed state tells; events that are known already are left out."""
        incarnation, cursor = self._heard.get(node, ("", 0))
        if incarnation != state.incarnation:
            cursor = 0
        for event in state.events:
            if event.cursor > cursor:
                cursor = event.cursor
                self._add(node, event)
        self._heard[node] = (state.incarnation, cursor)

    def note(self, node: str, level: str, what: str, reason: str | None = None) -> None:
        """Take down what this process itself has noticed about a neuron."""
        self._append(node=node, at=self._wall(), level=level, subject="node", what=what, reason=reason)

    def since(self, serial: int) -> list[Happened]:
        """Return the remembered events after number `serial`."""
        missing = max(0, min(self._serial - serial, len(self._events)))
        return list(islice(self._events, len(self._events) - missing, None))

    def _add(self, node: str, event: LifecycleEvent) -> None:
        self._append(
            node=node,
            at=self._wall() - event.age_ms / 1000,
            level=event.level,
            subject=event.subject,
            what=event.what,
            reason=event.reason,
            device=event.device,
            model=event.model,
            details=event.details,
        )

    def _append(self, **values: Any) -> None:
        self._serial += 1
        self._events.append(Happened(serial=self._serial, **values))
