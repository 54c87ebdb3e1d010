"""A simulated fleet before the real view, routing and placement: 64 neurons with 8 devices each, 500 models."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable

from msgspec import structs

from common.catalogue import Profile
from common.codec import decode_from_neuron, encode
from common.messages import DeviceState, ModelState, NodeState, ReplicaState
from cortex.fleet import placement, routing
from cortex.fleet.view import Holders, LinkState, Node

NEURONS, DEVICES, MODELS, RESIDENT = 64, 8, 500, 16
PUSHES_S = 20
"""States a neuron pushes in a second at most."""
CHANGED = 3
"""Models that one push tells about."""
ROUNDS = 2000
TALK = [f"link-{n}" for n in range(8)]


def measure() -> dict[str, object]:
    """Return decisions in microseconds, and what the pushed states cost as a share of one core."""
    view = _Fleet()
    copies = {n: view.spread(n) for n in (1, 2, 4, 8, 16)}
    cold = Profile(id="cold", source="file:/cold.gguf", vram_mb=12_000)
    resident = itertools.cycle(f"org/model-{n}" for n in range(MODELS))
    warm = {n: _median_us(functools.partial(view.route, model)) for n, model in copies.items()}
    return {
        "neurons": NEURONS,
        "devices": NEURONS * DEVICES,
        "models": MODELS,
        "routing_us_over_all_models": _median_us(lambda: view.route(next(resident))),
        "routing_us_by_replicas": {str(n): us for n, us in warm.items()},
        "placement_of_a_cold_model_us": _median_us(lambda: placement.rank(view.nodes, "cold", cold), ROUNDS // 40),
        "pushed_states_share_of_a_core": round(view.pushes(seconds=2) / 2, 4),
    }


def _median_us(decide: Callable[[], object], rounds: int = ROUNDS) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        decide()
        taken.append(time.perf_counter() - begun)
    return round(statistics.median(taken) * 1e6, 1)


class _Fleet:
    """The view of one gateway process, and the states that its neurons push."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.holders = Holders()
        self._states: list[NodeState] = []
        for number in range(NEURONS):
            node = Node(f"neuron-{number}")
            node.link = LinkState.UP
            state = NodeState(
                incarnation=str(number), seq=1, full=True, name=node.name, version="0",
                devices=[_device(number, n) for n in range(DEVICES)],
                models=[_model(number, n) for n in range(MODELS)],
            )  # fmt: skip
            self.nodes.append(node)
            self._states.append(state)
            self._apply(number, encode(state))

    def _apply(self, number: int, frame: bytes) -> None:
        state = decode_from_neuron(frame)
        assert isinstance(state, NodeState)
        self.nodes[number].apply(state)
        self.holders.learn(self.nodes[number], state)

    def spread(self, copies: int) -> str:
        """Load a model on so many neurons, each with 64 conversations; return its id."""
        model = f"spread-{copies}"
        for number in range(copies):
            links = [f"{number}-{n}" for n in range(255)] + [TALK[4]]
            replica = ReplicaState(device=f"{number}-0", status="loaded", memory_mb=1)
            self._push(number, [ModelState(id=model, status="loaded", replicas=[replica], parallel=8, prefixes=links)])
        return model

    def _push(self, number: int, models: Iterable[ModelState]) -> bytes:
        before = self._states[number]
        after = self._states[number] = structs.replace(
            before, seq=before.seq + 1, full=False, devices=[], models=list(models)
        )
        frame = encode(after)
        self._apply(number, frame)
        return frame

    def route(self, model: str) -> object:
        """Decide where a turn of a conversation goes."""
        return routing.rank(self.holders.of(model), model, TALK)

    def pushes(self, seconds: int) -> float:
        """Return the processor seconds that all neurons' pushes of so many seconds take."""
        frames = []
        for turn in range(PUSHES_S * seconds):
            for number in range(NEURONS):
                state = self._states[number]
                models = [
                    structs.replace(_model(number, n), running=turn % 7, prefixes=TALK * 8)
                    for n in range(turn % 5, turn % 5 + CHANGED)
                ]
                device = structs.replace(_device(number, turn % DEVICES), steps=turn)
                self._states[number] = structs.replace(
                    state, seq=state.seq + 1, full=False, devices=[device], models=models
                )
                frames.append((number, encode(self._states[number])))
        begun = time.process_time()
        for number, frame in frames:
            self._apply(number, frame)
        return time.process_time() - begun


def _device(neuron: int, number: int) -> DeviceState:
    return DeviceState(
        uuid=f"{neuron}-{number}", name="virtual", kind="cuda", state="ready", memory_mb=24_000, reserved_mb=20_000,
        used_mb=20_500, utilization=0.5, temperature_c=60.0, power_w=200.0,
    )  # fmt: skip


def _model(neuron: int, number: int) -> ModelState:
    values = ModelState(id=f"org/model-{number}", status="unloaded", context=8192, parallel=8, memory_mb=9_000)
    if (number + neuron) % (MODELS // RESIDENT):
        return values
    replica = ReplicaState(device=f"{neuron}-{number % DEVICES}", status="loaded", memory_mb=9_000)
    return structs.replace(values, status="loaded", replicas=[replica])
