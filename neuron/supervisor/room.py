"""Room on devices: what is free, who would have to go for more, and marking those. Decides, but loads nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from neuron.memory.estimate import MemoryPlan
from neuron.memory.residency import Model, Replica, Want
from neuron.memory.victims import Strategy, Tenant, choose_victims, cost, may_go
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import size_model

UNSERVED_S = 10.0
"""A model that was loaded and not used in this time may go: nobody came for it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A device with enough free memory."""

    device: str
    plan: MemoryPlan


@dataclass(frozen=True, slots=True)
class Chance:
    """A device on which room can be made, by these models or, if there are none, by those that go already."""

    device: str
    plan: MemoryPlan
    victims: list[Tenant]


@dataclass(frozen=True, slots=True)
class Later:
    """There will be room, but those who could make it are loading, or have not served yet."""


@dataclass(frozen=True, slots=True)
class Never:
    """No device can make enough room."""

    why: str


class Rooms:
    """Finds room and makes it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def strategy(self) -> Strategy:
        """The neuron's own, else the gateways'."""
        host = self._host
        return host.settings.eviction.strategy or (host.advised.strategy if host.advised is not None else "lru")

    def free_mb(self, device: str) -> int | None:
        """Return what may be given away now: neither promised nor needed for what others make room for."""
        ledger = self._host.ledger
        free, room = ledger.free_mb(device), ledger.room_mb(device, self._going(device))
        return None if free is None or room is None else max(0, min(free, room))

    def find(self, model: Model, devices: Sequence[str], evictable: Collection[str]) -> Fit | Chance | Later | Never:
        """Choose among `devices`; only on those of `evictable` may others have to go."""
        fits: list[tuple[int, Fit]] = []
        cramped: list[tuple[int, Fit]] = []
        chances: list[Chance] = []
        is_later = False
        why = []
        for device in devices:
            ideal = size_model(self._host, model, device, self._host.ledger.capacity_mb(device))
            if not isinstance(ideal, MemoryPlan):
                why.append(f"{device}: {ideal}")
                continue
            free = self.free_mb(device)
            now = size_model(self._host, model, device, free)
            if isinstance(now, MemoryPlan):
                # A context smaller than the device could offer is taken only where nobody can go for a larger one.
                (fits if now.context >= ideal.context else cramped).append((free or 0, Fit(device, now)))
                if now.context >= ideal.context:
                    continue
            found = self._make(model, device, ideal) if device in evictable else Later()
            if isinstance(found, Chance):
                chances.append(found)
            elif isinstance(found, Never):
                why.append(f"{device}: {found.why}")
            elif not isinstance(now, MemoryPlan):
                is_later = True
        if fits:
            return max(fits, key=lambda f: f[0])[1]
        if chances:
            return min(chances, key=lambda c: cost(c.victims, self.strategy))
        if cramped:
            return max(cramped, key=lambda f: f[0])[1]
        return Later() if is_later else Never("; ".join(why) or "it is already on every device")

    def _make(self, model: Model, device: str, ideal: MemoryPlan) -> Chance | Later | Never:
        host, priority = self._host, model.profile.residency_priority
        tenants, going = self._tenants(device), self._going(device)
        most = host.ledger.room_mb(device, going | {t.model for t in tenants if may_go(t, priority)})
        plan: MemoryPlan | str = ideal
        if most is not None and ideal.memory_mb > (most := most + host.ledger.earmarked_mb(device)):
            # Who is about to come may go again in its turn.
            plan = size_model(host, model, device, max(0, most))
        if not isinstance(plan, MemoryPlan):
            staying = sorted(t.model for t in tenants if not may_go(t, priority))
            return Never(plan + (f" even if all went that may; {', '.join(staying)} may not" if staying else ""))
        room = host.ledger.room_mb(device, going)
        lacking = 0 if room is None else plan.memory_mb - room
        if lacking <= 0:
            return Chance(device, plan, [])
        victims = choose_victims(tenants, lacking, priority=priority, strategy=self.strategy)
        return Later() if victims is None else Chance(device, plan, victims)

    def _tenants(self, device: str) -> list[Tenant]:
        host = self._host
        return [
            Tenant(
                model.id,
                replica.memory_mb or 0,
                model.profile.residency_priority,
                replica.used_at,
                is_busy=replica.running > 0 or host.jobs.waiting(model.id) > 0,
                is_pinned=model.pinned,
                is_settled=self._is_settled(model, replica),
            )
            for model in host.models.values()
            if (replica := model.replicas.get(device)) is not None and not replica.is_going
        ]

    def _is_settled(self, model: Model, replica: Replica) -> bool:
        if replica.status != "loaded" or replica.leaving:
            return False
        age = self._host.now - replica.loaded_at
        if replica.running or self._host.jobs.waiting(model.id):
            # Both want the memory: they take turns, and a turn is at least as long as it took to begin it.
            return replica.has_served and age >= (replica.load_s or 0.0)
        return replica.has_served or age >= UNSERVED_S

    def _going(self, device: str) -> set[str]:
        return {m.id for m in self._host.models.values() if (r := m.replicas.get(device)) is not None and r.is_going}

    def make(self, want: Want, chance: Chance) -> None:
        """Have the victims leave, and keep their memory for the model."""
        host = self._host
        want.at, want.plan = chance.device, chance.plan
        host.ledger.earmark(chance.device, want.model, chance.plan.memory_mb)
        host.is_dirty = True
        for victim in chance.victims:
            model = host.models[victim.model]
            replica = model.replicas[chance.device]
            replica.leaving, replica.makes_room_for = True, want.model
            host.leaving.add(model.id)
            how = "busy, its jobs end first" if victim.is_busy else f"idle for {host.now - replica.used_at:.1f} s"
            model.unloaded_because = f"made room for {want.model} on {chance.device} ({self.strategy}: {how})"
            host.say("info", "evicting model", model=model.id, device=chance.device, makes_room_for=want.model,
                     because=f"{self.strategy}: {how}")  # fmt: skip

    def give_up(self, want: Want) -> None:
        """Let the victims stay that have not gone yet, and the memory go to others."""
        host = self._host
        if want.at is None:
            return
        host.ledger.forgo(want.at, want.model)
        for model in host.models.values():
            replica = model.replicas.get(want.at)
            if replica is not None and replica.makes_room_for == want.model and replica.status == "loaded":
                replica.leaving, replica.makes_room_for, model.unloaded_because = False, None, None
                host.say("info", "model stays", model=model.id, device=want.at, because=f"{want.model} gave up")
        want.at = want.plan = None
        host.is_dirty = True

    def is_sound(self, want: Want) -> bool:
        """Say whether the room in the making will still suffice."""
        assert want.at is not None
        room = self._host.ledger.room_mb(want.at, self._going(want.at))
        return self._host.can_serve(want.at) and (room is None or room >= 0)

    def is_made(self, want: Want) -> bool:
        """Say whether the model can be loaded now."""
        assert want.at is not None
        assert want.plan is not None
        model = self._host.models[want.model]
        return want.at not in model.replicas and self._host.ledger.can_hold(want.at, want.plan.memory_mb)
