"""Models that are to be loaded: at once where there is room, else in the order of asking as others make room.

A plan is taken whole and looked at again after every event: it is dropped, and who had to leave for it stays, when its
last waiter is gone, when its time is over, and when it no longer suffices; then another one is looked for. Who has left
already for a wish that is not fulfilled is loaded again.
"""

from collections.abc import Callable, Collection
from itertools import combinations, islice

from common.errors import Code
from common.messages import Done, Refused
from neuron.memory.estimate import MemoryPlan
from neuron.memory.residency import Model, Want
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import is_large_enough
from neuron.supervisor.room import Chance, Devices, Fit, Later, Never, Rooms

Failure = tuple[Code, str]
MOST_PLACES = 256
"""Sets of devices that are looked at for a model that spans several."""


class Wants:
    """Carries wishes to their load or their refusal."""

    def __init__(
        self,
        host: Host,
        rooms: Rooms,
        inspect: Callable[[Model], None],
        start: Callable[[Model, Devices, MemoryPlan], None],
        bring_back: Callable[[Model], None],
    ) -> None:
        """`inspect` has a model's file looked at, `start` begins a load for which there is room.

        `bring_back` undoes what a wish that fails has brought about; it may add wishes.
        """
        self._host = host
        self._rooms = rooms
        self._inspect = inspect
        self._start = start
        self._bring_back = bring_back

    def ask(self, model: Model, device: str | None = None, *, may_evict: bool = True) -> Failure | None:
        """Load a model on `device` or the best one, or have it wait for room; return why neither is possible."""
        host = self._host
        if model.fault is not None:
            return Code.MODEL_LOADING_FAILED, f"model '{model.id}' cannot be loaded: {model.fault}"
        if device is not None and device not in host.devices:
            return Code.NOT_FOUND, f"no device '{device}' here; there are: {', '.join(host.devices)}"
        if (device is None and model.is_coming()) or (model.id, device) in host.wants:
            return None
        want = Want(model.id, device, host.now)
        outcome = self._attempt(want, self._contested() if may_evict else host.devices)
        if isinstance(outcome, tuple):
            return outcome
        if outcome is not None and not may_evict and not want.at:
            return Code.NO_CAPACITY, f"no room for model '{model.id}' unless another one goes"
        if outcome is not None:
            want.is_own = not may_evict
            host.wants[model.id, device] = want
            host.is_dirty = True
            host.say("info", "model waits for room", model=model.id, device="+".join(want.at) or None)
        return None

    def advance(self) -> list[tuple[Model, Failure]]:
        """Move every wish on; return those that failed, whose waiting jobs the caller ends."""
        host, failed = self._host, []
        for key, want in list(host.wants.items()):
            model = host.models[want.model]
            if self._is_fulfilled(want, model):
                self._forget(key)
                self._hand_over(want, model)
                continue
            if not want.waiters and not want.is_own and (want.device is not None or not host.jobs.waiting(model.id)):
                host.say("info", "model no longer waits for room", model=model.id, because="nobody waits for it")
                self._drop(key, model)
                continue
            outcome = self._step(want, model)
            if outcome is None:
                self._forget(key)
                self._hand_over(want, model)
            elif isinstance(outcome, tuple):
                self._drop(key, model)
                for peer, request in want.waiters:
                    host.tell(peer, Refused(request=request, code=outcome[0], message=outcome[1]))
                host.say("warning", "model gets no room", model=model.id, why=outcome[1])
                if want.device is None:
                    failed.append((model, outcome))
        return failed

    def _is_fulfilled(self, want: Want, model: Model) -> bool:
        if want.device is None:
            return model.is_coming()
        return any(want.device in r.devices and not r.is_going for r in model.replicas.values())

    def _step(self, want: Want, model: Model) -> Failure | Later | None:
        """Return None when its load has begun, and Later while it has to wait."""
        host, waited_s = self._host, self._host.now - want.since
        if model.fault is not None:
            return Code.MODEL_LOADING_FAILED, f"model '{model.id}' cannot be loaded: {model.fault}"
        if waited_s > host.settings.swap_wait_s:
            text = f"no room for model '{model.id}' within {waited_s:.0f} s: the others are in use"
            return Code.NO_CAPACITY, text
        if model.facts is None:  # its profile has changed meanwhile, and with it what it needs
            self._rooms.give_up(want)
            self._inspect(model)
            return Later()
        if want.at and not self._rooms.is_sound(want):
            self._rooms.give_up(want)
        if not want.at:
            return self._attempt(want, host.devices if want.is_own else self._contested(want))
        if not self._rooms.is_made(want):
            return Later()
        assert want.plan is not None
        self._start(model, want.at, want.plan)
        return None

    def _attempt(self, want: Want, kept: Collection[str]) -> Failure | Later | None:
        """Look for room; on the devices of `kept` nobody goes."""
        host, model = self._host, self._host.models[want.model]
        count = model.profile.min_devices
        named = [want.device] if want.device is not None else list(host.devices)
        serving = [d for d in host.devices if host.can_serve(d) and is_large_enough(model, host.devices[d])]
        if len(serving) < count or not any(d in serving for d in named):
            considered = named if count == 1 else host.devices
            reasons = "; ".join(
                f"{d}: {host.why_not(d) or 'less than min_device_vram_mb'}" for d in considered if d not in serving
            )
            needs = "no device" if count == 1 else f"fewer than {count} devices"
            return (
                Code.DEVICE_UNAVAILABLE,
                f"{needs} can take model '{model.id}' now ({reasons or 'there are no more'})",
            )
        places = [p for p in self._places(want, serving, count) if self._is_vacant(model, p)]
        here = [r for d in serving if d in named and (r := host.replica(model, host.owner(d)))]
        is_changing = count > 1 and any(host.is_regrouping(d) for d in serving)
        if not places and (is_changing or any(r.is_going for r in here)):
            return Later()
        match self._rooms.find(model, places, [d for d in serving if d not in kept]):
            case Fit(devices, plan):
                self._start(model, devices, plan)
                return None
            case Chance() as chance:
                self._rooms.make(want, chance)
                return Later()
            case Later() as later:
                return later
            case Never(why):
                return Code.NO_CAPACITY, f"no room for model '{model.id}' ({why})"

    @staticmethod
    def _places(want: Want, serving: list[str], count: int) -> list[Devices]:
        places = (p for p in combinations(serving, count) if want.device is None or want.device in p)
        return list(islice(places, MOST_PLACES))

    def _is_vacant(self, model: Model, place: Devices) -> bool:
        """Say whether the model may come here: a worker has it once, and one that is to end takes none that spans."""
        host = self._host
        if any(host.replica(model, host.owner(d)) is not None for d in place):
            return False
        return len(place) == 1 or not any(host.is_regrouping(d) for d in host.affected(place))

    def _contested(self, until: Want | None = None) -> set[str]:
        """Return the devices on which an earlier wish, still without a plan, is to choose first: else it may starve."""
        devices: set[str] = set()
        for want in self._host.wants.values():
            if want is until:
                break
            if not want.at:
                devices |= {want.device} if want.device is not None else set(self._host.devices)
        return devices

    def _forget(self, key: tuple[str, str | None]) -> None:
        self._rooms.give_up(self._host.wants.pop(key))
        self._host.is_dirty = True

    def _drop(self, key: tuple[str, str | None], model: Model) -> None:
        """Give a wish up; unless another one for the model goes on, or it is there, who went for it comes back."""
        self._forget(key)
        if not model.is_coming() and not any(w.model == model.id for w in self._host.wants.values()):
            self._bring_back(model)

    def _hand_over(self, want: Want, model: Model) -> None:
        """Let those who waited for room wait for the load."""
        replicas = [
            r for r in model.replicas.values() if (want.device is None or want.device in r.devices) and not r.is_going
        ]
        loaded = next((r for r in replicas if r.status == "loaded"), None)
        for peer, request in want.waiters:
            if loaded is not None:
                self._host.tell(peer, Done(request=request, text=f"{model.id} is loaded on {loaded.place}"))
            else:
                replicas[0].waiters.append((peer, request))

    def peer_lost(self, peer: str) -> None:
        """Wait no longer for a peer that is gone."""
        for want in self._host.wants.values():
            want.waiters = [w for w in want.waiters if w[0] != peer]
