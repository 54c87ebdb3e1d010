"""Who has how much of each device, in MiB. Pure; the supervisor is its single owner."""

from collections.abc import Collection

HOST = "host"
"""The host's own memory, beside the devices: what models keep there while a GPU computes, and idle conversations."""


class Ledger:
    """Promises of device memory to models: kept ones, and earmarks for models that others make room for.

    A device of unknown size takes anything: what is not known must not look like zero.
    """

    def __init__(self, capacities: dict[str, int | None]) -> None:
        self.changes = 0
        """Times that what is free may have changed."""
        self._capacities = dict(capacities)
        self._reserved: dict[tuple[str, str], int] = {}
        self._earmarked: dict[tuple[str, str], int] = {}
        self._unreleased: dict[str, int] = {}
        self._foreign: dict[str, int] = {}

    def capacity_mb(self, device: str) -> int | None:
        """Return what models may use of the device at most; None: unknown."""
        return self._capacities[device]

    def note_foreign(self, device: str, memory_mb: int) -> bool:
        """Give nobody what other programs hold of a device; return whether that has changed."""
        has_changed = self._foreign.get(device, 0) != memory_mb
        self._foreign[device] = memory_mb
        return has_changed

    def offered_mb(self, device: str) -> int | None:
        """Return what models may use of the device at most while other programs hold what they do; None: unknown."""
        capacity = self.capacity_mb(device)
        return None if capacity is None else max(0, capacity - self._foreign.get(device, 0))

    def reserved_mb(self, device: str) -> int:
        """Return the sum of the kept promises on a device."""
        return sum(mb for (at, _), mb in self._reserved.items() if at == device)

    def free_mb(self, device: str) -> int | None:
        """Return what is neither promised nor withheld, never below zero; None: unknown."""
        offered = self.offered_mb(device)
        return None if offered is None else max(0, offered - self.reserved_mb(device) - self.unreleased_mb(device))

    def room_mb(self, device: str, going: Collection[str] = ()) -> int | None:
        """Return what is neither promised nor earmarked once the models of `going` are gone; None: unknown.

        Below zero: more is earmarked than will be free. What is withheld counts as room: a new worker brings it back.
        """
        offered = self.offered_mb(device)
        if offered is None:
            return None
        staying = sum(mb for (at, model), mb in self._reserved.items() if at == device and model not in going)
        return offered - staying - self.earmarked_mb(device)

    def earmarked_mb(self, device: str) -> int:
        """Return the sum of the earmarks on a device."""
        return sum(mb for (at, _), mb in self._earmarked.items() if at == device)

    def can_hold(self, device: str, memory_mb: int) -> bool:
        """Say whether a new promise of this size can be kept."""
        free = self.free_mb(device)
        return free is None or memory_mb <= free

    def withhold(self, device: str, memory_mb: int) -> None:
        """Give nobody what a model that is gone has not given back."""
        self.changes += 1
        self._unreleased[device] = self.unreleased_mb(device) + memory_mb

    def unreleased_mb(self, device: str) -> int:
        """Return what is withheld on a device."""
        return self._unreleased.get(device, 0)

    def restore(self, device: str) -> None:
        """Withhold nothing any more: the process that kept it has ended."""
        self.changes += 1
        self._unreleased.pop(device, None)

    def earmark(self, device: str, model: str, memory_mb: int) -> None:
        """Keep memory that is about to be freed for a model."""
        self._earmarked[device, model] = memory_mb

    def forgo(self, device: str, model: str) -> None:
        """End an earmark; nothing happens if there is none."""
        self._earmarked.pop((device, model), None)

    def reserve(self, device: str, model: str, memory_mb: int) -> None:
        """Promise memory to a model on a device; its earmark there has served its purpose."""
        assert (device, model) not in self._reserved, f"{model} already has memory on {device}"
        assert self.can_hold(device, memory_mb), f"{memory_mb} MiB for {model} do not fit on {device}"
        self.forgo(device, model)
        self.changes += 1
        self._reserved[device, model] = memory_mb

    def reconcile(self, device: str, model: str, memory_mb: int) -> None:
        """Replace a promise by what was measured, also where the device is then over-promised."""
        if (device, model) in self._reserved:
            self.changes += 1
            self._reserved[device, model] = memory_mb

    def release(self, device: str, model: str) -> None:
        """End a promise; nothing happens if there is none."""
        self.changes += 1
        self._reserved.pop((device, model), None)
