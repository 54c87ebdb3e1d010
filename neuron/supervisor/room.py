"""Room on devices: what is free, who would have to go for more, and marking those. Decides, but loads nothing.

A model that spans several devices takes an equal share of each, so of every one it gets what the fullest has room for.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from neuron.memory.estimate import MemoryPlan
from neuron.memory.ledger import HOST
from neuron.memory.residency import Model, Replica, Want, host_key, share
from neuron.memory.victims import Strategy, Tenant, choose_victims, cost, may_go
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import size_model

UNSERVED_S = 10.0
"""A model that was loaded and not used in this time may go: nobody came for it."""

Devices = tuple[str, ...]
"""What one replica lies on."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Devices of one worker with enough free memory."""

    devices: Devices
    plan: MemoryPlan


@dataclass(frozen=True, slots=True)
class Chance:
    """Devices on which room can be made, by these models or, if there are none, by those that go already.

    Without either there is room, but one worker has to take the devices over first.
    """

    devices: Devices
    plan: MemoryPlan
    victims: list[Tenant]


@dataclass(frozen=True, slots=True)
class Later:
    """There will be room, but those who could make it are loading, or have not served yet."""


@dataclass(frozen=True, slots=True)
class Never:
    """No device can make enough room."""

    why: str


def _layers(plan: MemoryPlan) -> float:
    return math.inf if plan.gpu_layers is None else plan.gpu_layers


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

    def find(self, model: Model, places: Sequence[Devices], evictable: Collection[str]) -> Fit | Chance | Later | Never:
        """Choose among `places`; only on devices of `evictable` may others have to go."""
        fits: list[tuple[int, Fit]] = []
        cramped: list[tuple[int, Fit]] = []
        chances: list[Chance] = []
        is_later = False
        why = []
        for place in places:
            name = "+".join(place)
            ideal = self._size(model, place, [self._host.ledger.offered_mb(d) for d in place])
            if not isinstance(ideal, MemoryPlan):
                why.append(f"{name}: {ideal}")
                continue
            if ideal.host_mb > (self._host.ledger.capacity_mb(HOST) or 0):
                why.append(f"{name}: {self._too_large(ideal)}")
                continue
            least = _least([self.free_mb(d) for d in place])
            now = self._size(model, place, [least])
            is_free = isinstance(now, MemoryPlan) and not self._spanning(place)
            is_free = is_free and isinstance(now, MemoryPlan) and (self.free_mb(HOST) or 0) >= now.host_mb
            if isinstance(now, MemoryPlan) and is_free:
                # Less context or fewer GPU layers than the device could offer are taken only where nobody can go for
                # more.
                is_whole = now.context >= ideal.context and _layers(now) >= _layers(ideal)
                (fits if is_whole else cramped).append((least or 0, Fit(place, now)))
                if is_whole:
                    continue
            found = self._make(model, place, ideal) if all(d in evictable for d in place) else Later()
            if isinstance(found, Chance):
                chances.append(found)
            elif isinstance(found, Never):
                why.append(f"{name}: {found.why}")
            elif not is_free:
                is_later = True
        if fits:
            return self._take(max(fits, key=lambda f: (not self._host.must_regroup(f[1].devices), f[0]))[1])
        if chances:
            return min(chances, key=lambda c: (cost(c.victims, self.strategy), self._host.must_regroup(c.devices)))
        if cramped:
            return self._take(max(cramped, key=lambda f: f[0])[1])
        return Later() if is_later else Never("; ".join(why) or "it is already on every device")

    def _take(self, fit: Fit) -> Fit | Chance:
        return Chance(fit.devices, fit.plan, []) if self._host.must_regroup(fit.devices) else fit

    def _size(self, model: Model, place: Devices, rooms: Sequence[int | None]) -> MemoryPlan | str:
        """Return the sizes for a place whose devices have this much room each."""
        least = _least(rooms)
        return size_model(self._host, model, place[0], None if least is None else max(0, least) * len(place))

    def _spanning(self, place: Devices) -> list[tuple[Model, Replica]]:
        """Return who spans devices of workers that would have to give this place up: nobody can move such a model."""
        host = self._host
        if not host.must_regroup(place):
            return []
        return [(m, r) for m, r in host.residents(*host.affected(place)) if len(r.devices) > 1 and not r.is_going]

    def _make(self, model: Model, place: Devices, ideal: MemoryPlan) -> Chance | Later | Never:
        host, priority = self._host, model.profile.residency_priority
        tenants = {d: self._tenants(d) for d in place}
        most: list[int | None] = []
        for device in place:
            gone = self._going(device) | {t.model for t in tenants[device] if may_go(t, priority)}
            room = host.ledger.room_mb(device, gone)
            # Who is about to come may go again in its turn.
            most.append(None if room is None else room + host.ledger.earmarked_mb(device))
        plan: MemoryPlan | str = ideal
        least = _least(most)
        if least is not None and share(ideal.memory_mb, len(place)) > least:
            plan = self._size(model, place, most)
        spanning = [self._tenant(m, r) for m, r in self._spanning(place)]
        if isinstance(plan, MemoryPlan) and all(may_go(t, priority) for t in spanning):
            return self._choose(place, plan, tenants, spanning, priority)
        staying = {t.model for ts in (*tenants.values(), spanning) for t in ts if not may_go(t, priority)}
        text = plan if isinstance(plan, str) else "one worker would have to take all its devices over"
        return Never(text + (f" even if all went that may; {', '.join(sorted(staying))} may not" if staying else ""))

    def _choose(
        self, place: Devices, plan: MemoryPlan, tenants: dict[str, list[Tenant]], chosen: list[Tenant], priority: int
    ) -> Chance | Later:
        """Add to the victims chosen already, device by device, who has to go beside them."""
        if not all(t.is_settled for t in chosen):
            return Later()
        for device in place:
            here = {t.model for t in chosen if device in self._host.models[t.model].replicas[t.device].devices}
            room = self._host.ledger.room_mb(device, self._going(device) | here)
            lacking = 0 if room is None else share(plan.memory_mb, len(place)) - room
            if lacking > 0:
                others = [t for t in tenants[device] if t.model not in here]
                victims = choose_victims(others, lacking, priority=priority, strategy=self.strategy)
                if victims is None:
                    return Later()
                chosen = chosen + victims
        beside = self._choose_beside(plan, chosen, priority)
        return Later() if beside is None else Chance(place, plan, chosen + beside)

    def _choose_beside(self, plan: MemoryPlan, chosen: list[Tenant], priority: int) -> list[Tenant] | None:
        """Return who has to go beside the chosen ones for host memory, on whatever device; None: not possible now."""
        host, leaving = self._host, {(t.model, t.device) for t in chosen}
        held = [(m, r) for m, r in host.residents(*host.devices) if r.host_mb and not r.is_going]
        freed_mb = sum(r.host_mb for m, r in held if (m.id, r.device) in leaving)
        lacking_mb = plan.host_mb - self._host_room_mb() - freed_mb
        if lacking_mb <= 0:
            return []
        others = [replace(self._tenant(m, r), memory_mb=r.host_mb) for m, r in held if (m.id, r.device) not in leaving]
        return choose_victims(others, lacking_mb, priority=priority, strategy=self.strategy)

    def _host_room_mb(self) -> int:
        """Return the host memory that is neither promised nor earmarked once those are gone who are on their way."""
        host = self._host
        going = [host_key(m.id, r.devices) for m, r in host.residents(*host.devices) if r.is_going]
        return host.ledger.room_mb(HOST, going) or 0

    def _too_large(self, plan: MemoryPlan) -> str:
        capacity_mb = self._host.ledger.capacity_mb(HOST)
        return f"it keeps {plan.host_mb} MiB in host memory, and this host gives {capacity_mb} (host_memory_mb)"

    def _tenants(self, device: str) -> list[Tenant]:
        return [self._tenant(m, r) for m, r in self._host.residents(device) if not r.is_going]

    def _tenant(self, model: Model, replica: Replica) -> Tenant:
        return Tenant(
            model.id,
            replica.share_mb,
            model.profile.residency_priority,
            replica.used_at,
            is_busy=replica.running > 0 or self._host.jobs.waiting(model.id) > 0,
            is_pinned=model.pinned,
            is_settled=self._is_settled(model, replica),
            device=replica.device,
        )

    def _is_settled(self, model: Model, replica: Replica) -> bool:
        if replica.status != "loaded" or replica.leaving:
            return False
        age = self._host.now - replica.loaded_at
        if replica.running or self._host.jobs.waiting(model.id):
            # Both want the memory: they take turns, and a turn is at least as long as it took to begin it.
            return replica.has_served and age >= (replica.load_s or 0.0)
        return replica.has_served or age >= UNSERVED_S

    def _going(self, device: str) -> set[str]:
        return {m.id for m, r in self._host.residents(device) if r.is_going}

    def make(self, want: Want, chance: Chance) -> None:
        """Have the victims leave, and keep their memory for the model."""
        host = self._host
        want.at, want.plan = chance.devices, chance.plan
        for device in want.at:
            host.ledger.earmark(device, want.model, want.share_mb)
        host.ledger.earmark(HOST, host_key(want.model, want.at), chance.plan.host_mb)
        host.is_dirty = True
        for victim in chance.victims:
            model = host.models[victim.model]
            replica = model.replicas[victim.device]
            replica.leaving, replica.makes_room_for, replica.leaves_for = True, want.model, "room"
            host.leaving.add(model.id)
            host.models[want.model].made_room.append((model.id, replica.device))
            how = "busy, its jobs end first" if victim.is_busy else f"idle for {host.now - replica.used_at:.1f} s"
            model.unloaded_because = f"made room for {want.model} on {replica.place} ({self.strategy}: {how})"
            host.say("info", "evicting model", model=model.id, device=replica.place, makes_room_for=want.model,
                     because=f"{self.strategy}: {how}")  # fmt: skip

    def give_up(self, want: Want) -> None:
        """Let the victims stay that have not gone yet, and the memory go to others."""
        host = self._host
        if not want.at:
            return
        for device in want.at:
            host.ledger.forgo(device, want.model)
        host.ledger.forgo(HOST, host_key(want.model, want.at))
        for model, replica in host.residents(*host.devices):
            if replica.makes_room_for == want.model and replica.status == "loaded":
                replica.leaving, replica.makes_room_for, model.unloaded_because = False, None, None
                host.say("info", "model stays", model=model.id, device=replica.place,
                         because=f"{want.model} gave up")  # fmt: skip
        want.at, want.plan = (), None
        host.is_dirty = True

    def is_sound(self, want: Want) -> bool:
        """Say whether the room in the making will still suffice."""
        rooms = [self._host.ledger.room_mb(d, self._going(d)) for d in want.at]
        has_room = all(room is None or room >= 0 for room in rooms) and self._host_room_mb() >= 0
        return has_room and all(self._host.can_serve(d) for d in want.at) and not self._spanning(want.at)

    def is_made(self, want: Want) -> bool:
        """Say whether the model can be loaded now."""
        host, model = self._host, self._host.models[want.model]
        if any(host.replica(model, host.owner(d)) is not None for d in want.at):
            return False
        if not all(host.ledger.can_hold(d, want.share_mb) for d in want.at):
            return False
        if want.plan is not None and not host.ledger.can_hold(HOST, want.plan.host_mb):
            return False
        if not host.must_regroup(want.at):
            return True
        # Its workers end for it: no job is cut, and no load is begun anew.
        affected = host.affected(want.at)
        is_at_rest = all(r.status == "loaded" and not r.running for _, r in host.residents(*affected))
        return is_at_rest and not any(host.is_regrouping(d) for d in affected)


def _least(rooms: Sequence[int | None]) -> int | None:
    """Return the least room that is known."""
    return min((r for r in rooms if r is not None), default=None)
