"""What is done when nothing is to be done: models past their time go, workers without one end, old ones are renewed."""

from neuron.memory.residency import Model, Replica
from neuron.supervisor.child import Child
from neuron.supervisor.family import Family
from neuron.supervisor.host import Host
from neuron.supervisor.states import State

DEFRAG_AFTER_CYCLES = 50
"""Where neither this host nor a gateway says."""
DEFRAG_IDLE_S = 5.0
"""A worker is restarted if none of its models was used for so long."""


class Upkeep:
    """Looks at every device now and then."""

    def __init__(self, host: Host, family: Family) -> None:
        self._host = host
        self._family = family
        self._empty_since: dict[str, float] = {}

    def wake(self) -> None:
        """Start the workers of idle devices that are to hold a model again."""
        for device, worker in self._host.workers.items():
            if worker.is_resting and self._host.residents(device):
                self._family.happen(worker, "start", "a model is to be loaded")

    def sweep(self) -> None:
        """Look at every device."""
        host = self._host
        if host.stopping:
            return
        for device, worker in host.workers.items():
            residents = host.residents(*host.members(device))
            for model, replica in residents:
                self._expire(model, replica)
            if worker.state is not State.READY or residents or self._is_wanted(device):
                self._empty_since.pop(device, None)
            elif host.now - self._empty_since.setdefault(device, host.now) >= host.settings.idle_exit_s:
                self._empty_since.pop(device)
                self._family.happen(worker, "rest", f"without a model for {host.settings.idle_exit_s:g} s")
            if self._keeps_memory(worker, residents):
                self._family.happen(worker, "restart", f"{self._unreleased_mb(device)} MiB were not released")
            elif self._is_due_for_defrag(worker, residents):
                self._family.happen(worker, "restart", f"renewed after {worker.cycles} loads")

    def _unreleased_mb(self, owner: str) -> int:
        return sum(self._host.ledger.unreleased_mb(d) for d in self._host.members(owner))

    def _is_wanted(self, owner: str) -> bool:
        members = self._host.members(owner)
        return any(not set(members).isdisjoint(w.at) for w in self._host.wants.values())

    def _is_unused(self, model: Model, replica: Replica) -> bool:
        is_quiet = replica.status == "loaded" and not replica.leaving and not replica.waiters
        return is_quiet and replica.running == 0 and self._host.jobs.waiting(model.id) == 0

    def _expire(self, model: Model, replica: Replica) -> None:
        host, ttl_s = self._host, model.profile.ttl_s
        if ttl_s is None or model.pinned or not self._is_unused(model, replica) or host.now - replica.used_at < ttl_s:
            return
        replica.leaving, replica.leaves_for = True, "ttl"
        model.unloaded_because = f"not used on {replica.place} for {ttl_s:g} s (ttl_s)"
        host.leaving.add(model.id)
        host.say("info", "model expires", model=model.id, device=replica.place, ttl_s=ttl_s)

    def _keeps_memory(self, worker: Child, residents: list[tuple[Model, Replica]]) -> bool:
        """Say whether the worker holds memory that belongs to no model, and has nothing to do."""
        is_kept = self._unreleased_mb(worker.name) > 0
        return is_kept and worker.state is State.READY and all(self._is_unused(m, r) for m, r in residents)

    def _is_due_for_defrag(self, worker: Child, residents: list[tuple[Model, Replica]]) -> bool:
        host = self._host
        limit = host.settings.eviction.defrag_after_cycles
        if limit is None:
            limit = host.advised.defrag_after_cycles if host.advised is not None else DEFRAG_AFTER_CYCLES
        if worker.state is not State.READY or worker.cycles < limit or self._is_wanted(worker.name):
            return False
        return all(self._is_unused(m, r) and host.now - r.used_at >= DEFRAG_IDLE_S for m, r in residents)
