"""The life of a child process of the supervisor, as states. docs/states.md draws it.

| state | there is a process | takes work | leaves by |
|---|---|---|---|
| STOPPED | no | no | start |
| IDLE | no: it had no model | yes, a load starts it | start, drain, stop, restart |
| STARTING | yes, silent so far | no | its hello, its exit, a stall |
| READY | yes | yes | drain, stop, restart, exit, a stall |
| DRAINING | yes | no new | undrain, idle, exit, a stall |
| KILLING | yes, TERM sent, KILL follows | no | its exit |
| RELEASING | gone, its memory perhaps not | no | memory seen free, or that taking too long |
| BACKOFF | no | no | the timer |
| QUARANTINED | no | no | an admin's restart, or the cool-down's one try |
"""

from enum import StrEnum


class State(StrEnum):
    """Where a child process is in its life."""

    STOPPED = "stopped"
    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    KILLING = "killing"
    RELEASING = "releasing"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"


ALIVE = frozenset({State.STARTING, State.READY, State.DRAINING, State.KILLING})
"""States in which there is a process."""
