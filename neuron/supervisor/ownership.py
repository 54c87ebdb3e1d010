"""Which worker owns which devices: one each, and several together while a model spans them.

A change begins when the running jobs of all workers concerned have ended. Those workers end; models that need not go
keep their memory and come back with the new workers:

    CPU-0: worker {a}            CPU-0 ┐                            CPU-0: worker {a}
    CPU-1: worker {b}  ─ big ─►  CPU-1 ┴ worker {a, b, big}  ─ … ─►  CPU-1: worker {b}

The models of a device that is drained, paused or quarantined leave the team, which ends with that.
"""

from itertools import chain

from neuron.supervisor.family import Family
from neuron.supervisor.host import Host, Regroup
from neuron.supervisor.placement import Placement
from neuron.supervisor.states import State
from neuron.supervisor.traffic import Traffic


class Ownership:
    """Gives devices to workers."""

    def __init__(self, host: Host, family: Family, placement: Placement, traffic: Traffic) -> None:
        self._host = host
        self._family = family
        self._placement = placement
        self._traffic = traffic

    def settle(self) -> None:
        """After an event: hold, begin and complete what is due."""
        host = self._host
        if host.stopping or not (host.owners or host.regroups or host.held or host.wants):
            return
        held = self._to_hold()
        released, host.held = host.held - held, held
        for owner in released:
            for model, _ in host.residents(*host.members(owner)):
                self._traffic.dispatch(model)
        for owner in self._teams():
            members = host.members(owner)
            if self._has_drained_member(owner) and not self._is_running(members) and not host.is_regrouping(owner):
                host.regroups.append(Regroup(members, ()))
        for regroup in list(host.regroups):
            self._advance(regroup)

    def sweep(self) -> None:
        """Give the devices of a team back to their own workers, once no model spans them and nothing runs."""
        host = self._host
        for owner in self._teams():
            members = host.members(owner)
            residents = host.residents(*members)
            is_needed = any(len(r.devices) > 1 for _, r in residents) or any(
                host.models[w.model].profile.min_devices > 1 for w in host.wants.values()
            )
            is_quiet = all(r.status == "loaded" and not r.running for _, r in residents) and not any(
                host.jobs.waiting(m.id) for m, _ in residents
            )
            if is_quiet and not is_needed and not host.stopping and not host.is_regrouping(owner):
                host.say("info", "devices go back to their own workers", devices=", ".join(members))
                host.regroups.append(Regroup(members, ()))

    def _teams(self) -> list[str]:
        return list(dict.fromkeys(self._host.owners.values()))

    def _to_hold(self) -> set[str]:
        host = self._host
        coming = [w.at for w in host.wants.values() if host.must_regroup(w.at)]
        ending = [tuple(r.devices) for r in host.regroups]
        held = {host.owner(d) for d in chain.from_iterable(coming + ending)}
        return held | {o for o in self._teams() if self._has_drained_member(o)}

    def _has_drained_member(self, owner: str) -> bool:
        return not self._host.draining_devices.isdisjoint(self._host.members(owner))

    def _is_running(self, devices: list[str]) -> bool:
        return any(self._host.jobs.running_on(d) for d in devices)

    def _advance(self, regroup: Regroup) -> None:
        """End the workers of the devices; when the last one is gone, start the new ones."""
        host = self._host
        workers = [host.workers[o] for o in dict.fromkeys(map(host.owner, regroup.devices))]
        if not regroup.has_begun:
            regroup.has_begun = True
            team = "+".join(regroup.team) or "each its own"
            host.say("info", "changing the owner of devices", devices=", ".join(regroup.devices), owner=team)
            for worker in workers:
                if worker.state not in (State.STOPPED, State.QUARANTINED):
                    self._family.happen(worker, "stop", f"its devices get another owner ({team})")
        if all(w.state in (State.STOPPED, State.QUARANTINED) for w in workers):
            host.regroups.remove(regroup)
            self._complete(regroup)

    def _complete(self, regroup: Regroup) -> None:
        host = self._host
        down = [d for d in regroup.devices if self._stays_down(d)]
        team = () if set(regroup.team) & set(down) else regroup.team
        for device in regroup.devices:
            host.owners.pop(device, None)
        host.owners |= dict.fromkeys(team, next(iter(team), ""))
        host.is_dirty = True
        self._family.stay_down(down)
        self._family.part(regroup.devices)
        for device in regroup.devices:
            if device not in down and host.owner(device) == device:
                self._family.happen(host.workers[device], "start", "its devices have a new owner")

    def _stays_down(self, device: str) -> bool:
        host = self._host
        is_condemned = host.workers[device].state is State.QUARANTINED
        return is_condemned or device in host.draining_devices or device in host.problems
