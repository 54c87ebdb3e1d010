"""What outlives the daemon: takes it from the host soon after it has changed, and puts it back at the start."""

from neuron.memory.saved import Resident, Saved
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import Inspection
from neuron.supervisor.instructions import SaveState
from neuron.supervisor.placement import Placement
from neuron.supervisor.states import State

SAVE_S = 1.0
"""Between a change and its being written; what changes more often is written once."""


class Keeper:
    """Keeps what was written last, so that only changes are."""

    def __init__(self, host: Host, inspection: Inspection, placement: Placement) -> None:
        self._host = host
        self._inspection = inspection
        self._placement = placement
        self._written: Saved | None = None
        self._wall_less_now_s = 0.0
        self._is_due = False
        self._pins: dict[str, bool] = {}
        """Of models that are not known yet: the disk has not been searched, or no gateway has told of them."""

    def restore(self, saved: Saved | None, wall_s: float) -> dict[str, str]:
        """Take over what was saved; `wall_s` is the time now since the epoch.

        Returns the devices that are in quarantine, with the reason.
        """
        host = self._host
        self._wall_less_now_s = wall_s - host.now
        self._written = saved
        if saved is None:
            return {}
        host.corrections.update(saved.corrections)
        for device, end in saved.pauses.items():
            if device in host.workers and (end is None or end > wall_s):
                host.pause(device, None if end is None else end - wall_s)
        for resident in saved.resident:
            known = host.models.get(resident.profile.id)
            if known is None or known.own is None:  # the neuron's own file is newer than what was saved
                self._inspection.adopt(resident.profile, own=False, found=resident.found)
        for profile in saved.preload:
            if profile.id not in host.models:
                self._inspection.adopt(profile, own=False)
        self._pins = dict(saved.pins)
        self._pin()
        for resident in saved.resident:
            model, device = host.models[resident.profile.id], resident.device
            if device in host.paused:
                host.parked.setdefault(device, []).append(model.id)
            else:
                self._placement.load_again(model, device if device in host.workers else None)
        return {d: why for d, why in saved.quarantines.items() if d in host.workers and d not in host.paused}

    def _pin(self) -> None:
        for model_id in [m for m in self._pins if m in self._host.models]:
            self._host.models[model_id].pinned = self._pins.pop(model_id)

    def settle(self) -> None:
        """After an event: see to it that a change is written soon."""
        host = self._host
        self._pin()
        if host.is_dirty and not self._is_due and not host.stopping:
            self._is_due = True
            host.wake_in("save", SAVE_S)

    def save(self) -> None:
        """Have what has changed written. Once the neuron is stopping its models go, and that is not to be kept."""
        self._is_due = False
        if self._host.stopping:
            return
        saved = self._take()
        if saved != self._written:
            self._written = saved
            self._host.out.append(SaveState(saved))

    def _take(self) -> Saved:
        host = self._host
        resident = [
            (not m.pinned, -r.used_at, Resident(profile=m.profile, device=r.device, found=m.is_found))
            for m in host.models.values()
            for r in m.replicas.values()
            if not r.leaving and r.status in ("loaded", "recovering")
        ]
        resident.sort(key=lambda row: row[:2])
        parked = [
            Resident(profile=host.models[m].profile, device=d, found=host.models[m].is_found)
            for d, ms in host.parked.items()
            for m in ms
        ]
        preload = [host.models[i] for i in (host.aliases.get(n, n) for n in host.settings.preload) if i in host.models]
        return Saved(
            corrections=dict(host.corrections),
            pauses={d: None if end is None else round(end + self._wall_less_now_s) for d, end in host.paused.items()},
            quarantines={
                d: w.reason or ""
                for d, w in host.workers.items()
                # Another start may find another engine.
                if w.state is State.QUARANTINED and not w.lacks_engine
            },
            pins=self._pins
            | {m.id: m.pinned for m in host.models.values() if m.pinned != (host.settings.name in m.profile.pinned_on)},
            resident=[row[2] for row in resident] + parked,
            preload=[m.given or m.profile for m in preload if m.own is None and not m.is_found],
        )
