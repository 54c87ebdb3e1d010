"""What one neuron last said about itself, put together from full and partial states. Pure.

A partial state counts only if it is the next one; late and repeated ones change nothing, a gap asks for a full one.
"""

from enum import Enum, StrEnum

from msgspec import structs

from common.messages import DeviceState, ModelState, NodeState


class LinkState(StrEnum):
    """How the connection to a neuron is.

    | state | new work | jobs there |
    |---|---|---|
    | DOWN | no | failed as lost when it went down |
    | UP | yes | run |
    | SUSPECT | no | left alone |
    | REFUSED | no | none: it speaks another protocol |
    """

    DOWN = "down"
    UP = "up"
    SUSPECT = "suspect"
    REFUSED = "refused"


class Applied(Enum):
    """What a state did to the view."""

    FIRST = "the first one"
    NEXT = "applied"
    LATE = "older than what is known, or the same; ignored"
    GAP = "something was missed; a full one is needed"
    REBORN = "applied; another life of this neuron, which knows no job of the one before"


class Node:
    """One neuron as this gateway process sees it."""

    def __init__(self, name: str, endpoint: str = "") -> None:
        """`name`: as configured, which is what users see."""
        self.name = name
        self.endpoint = endpoint
        self.link = LinkState.DOWN
        self.error: str | None = None
        """Why it was refused."""
        self.devices: dict[str, DeviceState] = {}
        self.models: dict[str, ModelState] = {}
        self._last: NodeState | None = None
        self._sent: dict[str, int] = {}

    @property
    def is_known(self) -> bool:
        """Whether it has ever told its state."""
        return self._last is not None

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new work by its own will."""
        return self._last is not None and self._last.state == "draining"

    @property
    def aliases(self) -> dict[str, str]:
        """Its own aliases, from its models file."""
        return {} if self._last is None else self._last.aliases

    def apply(self, state: NodeState) -> Applied:
        """Take a pushed state."""
        last = self._last
        is_same_life = last is not None and last.incarnation == state.incarnation
        if last is not None and is_same_life and (state.seq < last.seq or (state.seq == last.seq and not state.full)):
            return Applied.LATE
        if state.full:
            self.devices, self.models = {}, {}
        elif last is None or not is_same_life or state.seq != last.seq + 1:
            return Applied.GAP
        self.devices.update({d.uuid: d for d in state.devices})
        self.models.update({m.id: m for m in state.models})
        for model in state.gone:
            self.models.pop(model, None)
        for item in state.models:
            self._sent.pop(item.id, None)  # its count of waiting jobs now holds what was sent before
        self._last = state
        if last is None:
            return Applied.FIRST
        return Applied.NEXT if is_same_life else Applied.REBORN

    def note_sent(self, model: str, jobs: int) -> None:
        """Count jobs that the neuron's next state will include."""
        self._sent[model] = self._sent.get(model, 0) + jobs

    def sent(self, model: str) -> int:
        """Return how many jobs for a model were sent since the neuron last told about it."""
        return self._sent.get(model, 0)

    def free_mb(self) -> int:
        """Return the most MiB free on one of its devices, as far as that is known."""
        free = [
            d.memory_mb - max(d.reserved_mb, d.used_mb or 0)
            for d in self.devices.values()
            if d.memory_mb is not None and not d.draining and d.reason is None
        ]
        return max([0, *free])

    def snapshot(self) -> NodeState | None:
        """Return the whole state, None if there is none yet."""
        if self._last is None:
            return None
        return structs.replace(
            self._last, full=True, devices=list(self.devices.values()), models=list(self.models.values()), gone=[]
        )
