"""Which neuron gets a request. Pure: the same view gives every gateway process the same order."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.ids import digest
from common.messages import ModelState
from cortex.fleet.view import LinkState, Node


@dataclass(frozen=True, slots=True)
class Choice:
    """A neuron that may run a model's jobs."""

    node: str
    needs_load: bool
    """Nothing there serves the model or is about to; it has to be asked to."""


def rank(nodes: Iterable[Node], model: str, *, has_profile: bool) -> list[Choice]:
    """Order the neurons that may serve `model`, best first.

    1. It is loaded there: fewest jobs relative to slots, counting what this process has sent since the last push.
    2. It is being loaded or recovers there: likewise.
    3. It is known and fits there: most free memory.
    4. Only the gateway's catalogue knows it (`has_profile`): most free memory.
    5. It could not be loaded there. The neuron looks again, and tells the reason if that has not gone.

    Ties are broken by a rendezvous hash, so that a model returns to where its files and caches are warm.
    """
    ranked: list[tuple[tuple[int, float, str], Choice]] = []
    for node in nodes:
        if node.link is not LinkState.UP or node.is_draining:
            continue
        state = node.models.get(model)
        if state is None and not has_profile:
            continue
        if state is not None and state.draining:
            continue
        tier = 4 if state is None else _tier(state)
        cost = _crowding(node, state) if state is not None and tier <= 2 else -float(node.free_mb())
        ranked.append(((tier, cost, digest(f"{model}\0{node.name}".encode())), Choice(node.name, tier > 2)))
    ranked.sort(key=lambda pair: pair[0])
    return [choice for _, choice in ranked]


def _tier(state: ModelState) -> int:
    if state.status == "loaded":
        return 1
    if state.status in ("loading", "recovering"):
        return 2
    return 3 if state.feasible and state.status != "failed" else 5


def _crowding(node: Node, state: ModelState) -> float:
    replicas = sum(1 for r in state.replicas if r.status in ("loaded", "loading", "recovering"))
    slots = max(1, replicas) * (state.parallel or 1)
    return (state.running + state.queued + node.sent(state.id)) / slots
