"""What one neuron last said about itself, put together from full and partial states. Pure.

A partial state counts only if it is the next one; late and repeated ones change nothing, a gap asks for a full one.
"""

from collections.abc import Collection
from enum import Enum, StrEnum

from msgspec import structs

from common.messages import DeviceState, ModelState, NodeState


class LinkState(StrEnum):
    """How the connection to a neuron is.

    | state | new work | jobs there |
    |---|---|---|
    | DOWN | no | failed as lost when it went down |
    | UP | yes | run |
    | SUSPECT | no | go on elsewhere where a replica is hot, else left alone |
    | REFUSED | no | none: another protocol, or a key it does not accept |
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
        self.missing_since: float | None = None
        """When it was heard of too long ago, or its connection broke; the link's clock. None: it is there."""
        self.is_cut = False
        """Its connection is gone; what it held is no longer shown, though its jobs may yet be saved."""
        self.devices: dict[str, DeviceState] = {}
        self.models: dict[str, ModelState] = {}
        self.resident: dict[str, ModelState] = {}
        """The models of which it has a replica in any state, or jobs."""
        self.displaced: set[str] = set()
        """The models whose device is in quarantine, and for which it has no other."""
        self._last: NodeState | None = None
        self._sent: dict[str, int] = {}
        self._promised: dict[str, int] = {}
        self._prefixes: dict[str, frozenset[str]] = {}

    @property
    def is_here(self) -> bool:
        """Whether what it last told still holds, as far as that can be known."""
        return self.link is LinkState.UP or (self.link is LinkState.SUSPECT and not self.is_cut)

    @property
    def is_known(self) -> bool:
        """Whether it has ever told its state."""
        return self._last is not None

    @property
    def is_draining(self) -> bool:
        """Whether it takes no new work by its own will."""
        return self._last is not None and self._last.state == "draining"

    @property
    def poisoned(self) -> list[str]:
        """Fingerprints of requests that have ended its workers."""
        return [] if self._last is None else self._last.poisoned

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
            self.devices, self.models, self.resident = {}, {}, {}
            self.displaced.clear()
            self._promised.clear()
            self._prefixes.clear()
        elif last is None or not is_same_life or state.seq != last.seq + 1:
            return Applied.GAP
        self.devices.update({d.uuid: d for d in state.devices})
        self.models.update({m.id: m for m in state.models})
        for model in state.gone:
            self.models.pop(model, None)
            self.resident.pop(model, None)
            self.displaced.discard(model)
        for item in state.models:
            self._prefixes.pop(item.id, None)
            self._sent.pop(item.id, None)  # its count of waiting jobs now holds what was sent before
            if item.replicas or item.running or item.queued:
                self.resident[item.id] = item
                self._promised.pop(item.id, None)
            else:
                self.resident.pop(item.id, None)
            if item.displaced:
                self.displaced.add(item.id)
            else:
                self.displaced.discard(item.id)
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

    def prefixes(self, model: str) -> frozenset[str]:
        """Return the hashes of the prompts whose KV is resident; made when first asked for after a change."""
        found = self._prefixes.get(model)
        if found is None:
            state = self.models.get(model)
            found = self._prefixes[model] = frozenset(() if state is None else state.prefixes)
        return found

    def note_load(self, model: str, memory_mb: int) -> None:
        """Count the memory that a load asked for just now will take, until the neuron tells of it or refuses."""
        self._promised[model] = memory_mb

    def forget_load(self, model: str) -> None:
        """Take back what was noted of a load."""
        self._promised.pop(model, None)

    def free_mb(self, device: DeviceState) -> int | None:
        """Return the MiB of a device that are not taken, nor promised by this process; None: unknown."""
        if device.memory_mb is None:
            return None
        taken_mb = max(device.reserved_mb, device.used_mb or 0) + sum(self._promised.values())
        return max(0, device.memory_mb - taken_mb)

    def snapshot(self) -> NodeState | None:
        """Return the whole state, None if there is none yet."""
        if self._last is None:
            return None
        return structs.replace(
            self._last,
            full=True,
            devices=list(self.devices.values()),
            models=list(self.models.values()),
            gone=[],
            events=[],
        )


class Holders:
    """Which neurons hold a model or have jobs for it, kept so that routing need not look at the others."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, Node]] = {}
        self._models: dict[str, set[str]] = {}

    def of(self, model: str) -> Collection[Node]:
        """Return the neurons that hold a model."""
        return self._nodes.get(model, {}).values()

    def learn(self, node: Node, state: NodeState) -> None:
        """Take over what a state that was just applied has changed."""
        known = self._models.setdefault(node.name, set())
        touched = known | node.resident.keys() if state.full else {m.id for m in state.models} | set(state.gone)
        for model in touched:
            if model in node.resident:
                self._nodes.setdefault(model, {})[node.name] = node
                known.add(model)
            elif model in known:
                known.discard(model)
                holders = self._nodes[model]
                del holders[node.name]
                if not holders:
                    del self._nodes[model]
