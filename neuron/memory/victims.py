"""Which resident models make room for another. Pure; sizes in MiB.

1. Never one that is pinned, of a higher class, still loading, or that has not served what it was loaded for.
2. Idle ones before busy ones: a busy one has to finish its jobs first.
3. `priority`: the lowest class first. Then, and with `lru` at once, the one whose last use is longest ago.
4. None that is not needed for the room.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["lru", "priority"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """One resident model as a candidate."""

    model: str
    memory_mb: int
    priority: int
    used_at: float
    """Last use, monotonic seconds."""
    is_busy: bool = False
    is_pinned: bool = False
    is_settled: bool = True
    """False: not now, but soon (rule 1's last two)."""
    device: str = ""
    """The first one of its replica."""


def may_go(tenant: Tenant, priority: int) -> bool:
    """Say whether a model may ever make room for one of class `priority`."""
    return not tenant.is_pinned and tenant.priority <= priority


def choose_victims(
    tenants: Iterable[Tenant], lacking_mb: int, *, priority: int, strategy: Strategy
) -> list[Tenant] | None:
    """Return whom to unload so that `lacking_mb` become free, in order; None: that is not possible now."""
    willing = [t for t in tenants if may_go(t, priority) and t.is_settled]
    willing.sort(key=lambda t: (t.is_busy, t.priority if strategy == "priority" else 0, t.used_at, t.model))
    chosen: list[Tenant] = []
    for tenant in willing:
        if lacking_mb <= sum(t.memory_mb for t in chosen):
            break
        chosen.append(tenant)
    surplus = sum(t.memory_mb for t in chosen) - lacking_mb
    if surplus < 0:
        return None
    for tenant in reversed(chosen.copy()):
        if tenant.memory_mb <= surplus:
            chosen.remove(tenant)
            surplus -= tenant.memory_mb
    return chosen


def cost(victims: list[Tenant], strategy: Strategy) -> tuple[int, int, float]:
    """Return a key: of two devices on which room can be made, the one with the lower key is taken."""
    return (
        sum(t.is_busy for t in victims),
        max((t.priority for t in victims), default=0) if strategy == "priority" else 0,
        max((t.used_at for t in victims), default=0.0),
    )
