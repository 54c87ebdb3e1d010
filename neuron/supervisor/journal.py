"""What has happened on this host lately, for operators: every line above debug that the machine logs, typed. Pure."""

from collections import deque
from itertools import islice

from msgspec import structs

from common.messages import EventSubject, LifecycleEvent
from neuron.supervisor.instructions import Say

KEPT = 500
SHOWN = 50
"""Events in a whole state: what a gateway that has just come knows of the past."""
_REASONS = ("why", "because", "cause", "story")
_NAMES = ("device", "model", *_REASONS)


class Journal:
    """The last events, each under a number that rises."""

    def __init__(self) -> None:
        self.cursor = 0
        """Number of the last event."""
        self._events: deque[tuple[float, LifecycleEvent]] = deque(maxlen=KEPT)

    def note(self, line: Say, now: float) -> bool:
        """Take a log line down at monotonic time `now`; False for one that is only for debugging."""
        if line.level == "debug":
            return False
        fields = dict(line.fields)
        is_child = line.text.startswith(("worker ", "prep ", "probe "))
        if is_child and "device" not in fields and fields.get("name") not in (None, "prep", "probe"):
            fields["device"] = fields.pop("name")
        self.cursor += 1
        event = LifecycleEvent(
            cursor=self.cursor,
            age_ms=0,
            level=line.level,
            subject=_subject(line.text, fields),
            what=line.text,
            reason=next((str(fields[k]) for k in _REASONS if fields.get(k)), None),
            device=fields.get("device"),
            model=fields.get("model"),
            details={k: str(v) for k, v in fields.items() if k not in _NAMES and v is not None},
        )
        self._events.append((now, event))
        return True

    def since(self, cursor: int, now: float) -> list[LifecycleEvent]:
        """Return the remembered events after number `cursor`, oldest first."""
        missing = min(self.cursor - cursor, len(self._events))
        return [_aged(e, at, now) for at, e in islice(self._events, len(self._events) - max(0, missing), None)]

    def latest(self, now: float) -> list[LifecycleEvent]:
        """Return what belongs into a whole state."""
        return self.since(max(0, self.cursor - SHOWN), now)


def _aged(event: LifecycleEvent, at: float, now: float) -> LifecycleEvent:
    return structs.replace(event, age_ms=int((now - at) * 1000))


def _subject(text: str, fields: dict[str, object]) -> EventSubject:
    if fields.get("model"):
        return "model"
    if fields.get("device"):
        return "device"
    if text.startswith(("prep ", "probe ")):
        return "helper"
    return "gateway" if "gateway" in text or "peer" in text else "node"
