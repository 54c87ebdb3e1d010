"""Which replica gets a request for a model that is loaded or coming. Pure: every gateway process answers the same.

Only neurons that hold the model are looked at, so the cost grows with its replicas, not with the fleet.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from common.ids import digest
from common.messages import ModelState
from cortex.fleet.view import LinkState, Node

LOAD_CAP = 1.25
"""A resident prefix counts while its replica has a free slot, or at most this many times the mean jobs a slot."""
SLOW = 1.5
"""A replica whose jobs take so many times longer than the fastest one's is used when that one has no free slot."""
_LIVE = frozenset({"loaded", "loading", "recovering"})
DEFAULT_SERVICE_MS = 1000
"""Where nothing has been measured yet."""


class Choice(NamedTuple):
    """A neuron that serves the model or will soon, and what speaks for it."""

    node: str
    is_loaded: bool
    shared: int
    """Links of the prompt's chain that are resident there."""
    wait_s: float
    """Expected until a slot is free."""
    crowding: float
    """Jobs a slot."""


class _Replica(NamedTuple):
    node: Node
    state: ModelState
    jobs: int
    slots: int


def can_take_work(node: Node) -> bool:
    """Say whether a neuron is connected and takes new jobs."""
    return node.link is LinkState.UP and not node.is_draining


def is_coming(state: ModelState) -> bool:
    """Say whether a neuron serves a model or will without being asked: it has the model, or jobs that wait for it."""
    return state.status in _LIVE or (state.status != "failed" and state.queued + state.running > 0)


def rank(nodes: Iterable[Node], model: str, chain: Sequence[str] = ()) -> list[Choice]:
    """Order the neurons that serve `model` or are about to, best first.

    1. Loaded before coming.
    2. The longest part of the prompt's prefix is resident, unless the replica has more than its share of the load.
    3. The shortest expected wait for a slot.
    4. Not much slower than the fastest.
    5. Fewest jobs a slot, counting what this process has sent since the last push.
    6. Fewest resident conversations a slot.
    7. The rendezvous hash of conversation and neuron.
    """
    replicas = [
        _measure(node, state)
        for node in nodes
        if can_take_work(node) and (state := node.models.get(model)) and not state.draining and is_coming(state)
    ]
    if not replicas:
        return []
    fair = LOAD_CAP * (sum(r.jobs for r in replicas) + 1) / sum(r.slots for r in replicas)
    fastest_ms = min((r.state.service_ms for r in replicas if r.state.service_ms), default=DEFAULT_SERVICE_MS)
    name = chain[1] if len(chain) > 1 else model
    ranked: list[tuple[tuple[bool, int, float, bool, float, float, str], Choice]] = []
    for replica in replicas:
        state, crowding = replica.state, replica.jobs / replica.slots
        service_ms = state.service_ms or fastest_ms
        wait_s = max(0, replica.jobs + 1 - replica.slots) / replica.slots * service_ms / 1000
        shared = _shared(replica.node, model, chain)
        if wait_s > 0 and (replica.jobs + 1) / replica.slots > fair:
            shared = 0
        is_loaded = state.status == "loaded"
        key = (
            not is_loaded,
            -shared,
            wait_s,
            service_ms > SLOW * fastest_ms,
            crowding,
            (len(state.prefixes) + replica.node.sent(model)) / replica.slots,
            _rendezvous(name, replica.node.name),
        )
        ranked.append((key, Choice(replica.node.name, is_loaded, shared, wait_s, crowding)))
    ranked.sort(key=lambda pair: pair[0])
    return [choice for _, choice in ranked]


@lru_cache(maxsize=4096)
def _rendezvous(name: str, node: str) -> str:
    """Return the hash of a conversation and a neuron; its later turns ask for the same."""
    return digest(f"{name}\0{node}".encode())


def _measure(node: Node, state: ModelState) -> _Replica:
    live = sum([r.status in _LIVE for r in state.replicas])
    return _Replica(
        node, state, state.running + state.queued + node.sent(state.id), max(1, live) * (state.parallel or 1)
    )


def _shared(node: Node, model: str, chain: Sequence[str]) -> int:
    """Return how much of the chain is resident; its first link, which many conversations share, alone is nothing."""
    if len(chain) < 2:
        return 0
    resident = node.prefixes(model)
    if resident:
        for number in range(len(chain), 1, -1):
            if chain[number - 1] in resident:
                return number
    return 0
