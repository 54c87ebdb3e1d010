"""Which neuron is to load a model that nobody has. Pure: the same view gives every gateway process the same order.

cortex places, neuron makes room: what is known here decides who is asked; the neuron itself decides what gives way.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from common.catalogue import Profile
from common.ids import digest
from common.messages import DeviceState, ModelState
from cortex.fleet.routing import can_take_work
from cortex.fleet.view import Node


class Fit(IntEnum):
    """How a model's size and a host's memory go together, the best first."""

    FREE = 0
    EVICTING = 1
    BUSY = 2
    UNKNOWN = 3
    PINNED = 4
    NEVER = 5


_WORDS = {
    Fit.FREE: "fits in free memory",
    Fit.EVICTING: "fits after idle models are unloaded",
    Fit.BUSY: "fits after busy models are drained",
    Fit.UNKNOWN: "its size or the device's is not known",
    Fit.PINNED: "would need the memory of pinned models or of a higher class",
    Fit.NEVER: "no device is large enough",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A neuron that could be asked to load a model."""

    node: str
    fit: Fit
    free_mb: int | None
    need_mb: int | None
    reasons: list[str]
    """What speaks for and against it, for people."""

    @property
    def is_hopeless(self) -> bool:
        """Whether the neuron is expected to refuse."""
        return self.fit >= Fit.PINNED


def rank(nodes: Iterable[Node], model: str, profile: Profile | None) -> list[Place]:
    """Order the neurons that may load `model`, best first. Without a profile only those that know the model count.

    1. There is hope: it fits by some means, and the last attempt did not fail.
    2. The neuron has the model's file; it is not known whether it has; it would fetch it. One that has not and would
       not comes last, so that it is asked only where no other is left, and its refusal says what to do.
    3. The profile's `pinned_on` names it.
    4. It fits free; after evicting; after draining busy models; that is not known.
    5. Most free memory on one device.
    6. The rendezvous hash of model and neuron: a model returns to where its file is warm.
    """
    nodes = [n for n in nodes if can_take_work(n)]
    elsewhere_mb = max((s.memory_mb or 0 for n in nodes if (s := n.models.get(model))), default=0)
    ranked: list[tuple[tuple[int, int, bool, Fit, int, str], Place]] = []
    for node in nodes:
        state = node.models.get(model)
        if (state is None and profile is None) or (state is not None and state.draining):
            continue
        is_failed = state is not None and (state.status == "failed" or not state.feasible)
        presence = None if state is None else state.presence
        is_seen = presence == "present" or (presence is None and state is not None and state.memory_mb is not None)
        has_file = is_seen and not is_failed
        would_fetch = presence == "downloadable" and profile is not None and profile.download == "on_demand"
        is_named = profile is not None and node.name in profile.pinned_on
        need_mb = _need_mb(state, profile, elsewhere_mb)
        fit, free_mb = judge(node, profile, need_mb)
        reasons = [text for text, holds in (("has the file", has_file), ("named in pinned_on", is_named)) if holds]
        reasons.append(_WORDS[fit])
        if presence in ("downloadable", "missing"):
            reasons.append("it has not fetched the file yet" if presence == "downloadable" else "it has no such file")
            is_failed |= not would_fetch
        elif state is not None and is_failed:
            reasons.append(f"the last attempt failed: {state.reason or 'without a reason'}")
        place = Place(node.name, fit, free_mb, need_mb, reasons)
        hope = 2 + (presence == "missing") if is_failed else int(place.is_hopeless)
        key = (
            hope,
            0 if has_file else 2 if would_fetch else 1,
            not is_named,
            fit,
            -(free_mb or 0),
            digest(f"{model}\0{node.name}".encode()),
        )
        ranked.append((key, place))
    ranked.sort(key=lambda pair: pair[0])
    return [place for _, place in ranked]


def is_feasible(node: Node, profile: Profile) -> bool:
    """Say whether a host could ever hold a model it has not seen yet, as far as the profile tells."""
    return judge(node, profile, profile.vram_mb)[0] is not Fit.NEVER


def judge(node: Node, profile: Profile | None, need_mb: int | None) -> tuple[Fit, int | None]:
    """Return how a model of `need_mb` MiB fits on its best devices here, and the most MiB free on one of them."""
    count = 1 if profile is None else profile.min_devices
    least_mb = 0 if profile is None else profile.min_device_vram_mb or 0
    usable = [
        d for d in node.devices.values()
        if d.reason is None and d.state != "unavailable" and not d.draining
        and (d.memory_mb is None or d.memory_mb >= least_mb)
    ]  # fmt: skip
    if len(usable) < count:
        return Fit.NEVER, None
    share_mb = None if need_mb is None else math.ceil(need_mb / count)
    free = [f for d in usable if (f := node.free_mb(d)) is not None]
    held = _held_mb(node, None if profile is None else profile.residency_priority)
    fits = sorted(_judge_device(node, d, share_mb, *held.get(d.uuid, (0, 0))) for d in usable)
    return fits[count - 1], max(free, default=None)


def _held_mb(node: Node, priority: int | None) -> dict[str, tuple[int, int]]:
    """Return what idle and what busy models hold of each device, in MiB, that may give way to this class."""
    held: dict[str, tuple[int, int]] = {}
    for state in node.resident.values():
        if state.pinned or (priority is not None and state.residency_priority > priority):
            continue
        for replica in state.replicas:
            devices = [replica.device, *replica.also_on]
            memory_mb = (replica.memory_mb or 0) // len(devices)
            for device in devices:
                idle_mb, busy_mb = held.get(device, (0, 0))
                if replica.running or replica.status != "loaded":
                    held[device] = idle_mb, busy_mb + memory_mb
                else:
                    held[device] = idle_mb + memory_mb, busy_mb
    return held


def _judge_device(node: Node, device: DeviceState, need_mb: int | None, idle_mb: int, busy_mb: int) -> Fit:
    free_mb = node.free_mb(device)
    if need_mb is None or device.memory_mb is None or free_mb is None:
        return Fit.UNKNOWN
    if need_mb > device.memory_mb:
        return Fit.NEVER
    if need_mb <= free_mb:
        return Fit.FREE
    if need_mb <= free_mb + idle_mb:
        return Fit.EVICTING
    return Fit.BUSY if need_mb <= free_mb + idle_mb + busy_mb else Fit.PINNED


def _need_mb(state: ModelState | None, profile: Profile | None, elsewhere_mb: int) -> int | None:
    """Return the MiB it takes: as the neuron has found, else as the profile says, else as another neuron has found."""
    floor_mb = 0 if profile is None else profile.vram_mb or 0
    found_mb = (state.memory_mb if state is not None else None) or (0 if floor_mb else elsewhere_mb)
    return max(floor_mb, found_mb) or None
