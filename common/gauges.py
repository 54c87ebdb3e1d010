"""Prometheus families made from what neurons say of themselves; the same on a gateway and on a neuron."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.messages import DeviceState, ModelState, NodeState

MIB = 2**20


class Seen(NamedTuple):
    """A neuron, under the name it is known by, with its whole last state."""

    name: str
    is_up: bool
    state: NodeState | None


class Family(NamedTuple):
    """One family: `device` and `model` are read from the states, None where nothing is known."""

    name: str
    help: str
    labels: tuple[str, ...]
    is_counter: bool = False


NODE_UP = Family("node_up", "1: the neuron answers.", ("node",))
NODE_SERVING = Family("node_serving", "1: the neuron takes new work.", ("node",))
_DEVICE, _MODEL = ("node", "device", "name"), ("node", "model")
DEVICE_STATE = Family("device_state", "1 for the state of the device's worker.", ("node", "device", "name", "state"))
EVICTIONS = Family("evictions", "Models unloaded, by why: room, ttl, admin.", ("node", "reason"), is_counter=True)
_DISK = ("node", "folder")
DISK_BYTES = Family("disk_bytes", "Size of a file system that models lie on.", _DISK)
DISK_FREE_BYTES = Family("disk_free_bytes", "Room that is left on it.", _DISK)
MODEL_STATUS = Family("model_status", "1 for the model's status on the neuron.", ("node", "model", "status"))
DEVICE_FAMILIES = {
    "memory_mb": Family("device_memory_bytes", "Memory of the device.", _DEVICE),
    "used_mb": Family("device_memory_used_bytes", "Memory in use, by anybody.", _DEVICE),
    "free_mb": Family("device_memory_free_bytes", "Memory neither in use nor promised to models.", _DEVICE),
    "reserved_mb": Family("device_memory_reserved_bytes", "Memory promised to models.", _DEVICE),
    "utilization": Family("device_utilization_ratio", "Share of time the device was busy, 0 to 1.", _DEVICE),
    "temperature_c": Family("device_temperature_celsius", "Temperature.", _DEVICE),
    "power_w": Family("device_power_watts", "Power drawn.", _DEVICE),
    "restarts": Family("worker_restarts", "Times the device's worker was started again.", _DEVICE, is_counter=True),
    "xids": Family("device_xid_errors", "Xid and ECC errors that the driver has reported.", _DEVICE, is_counter=True),
    "hangs": Family("worker_hangs", "Times the worker was killed for want of progress.", _DEVICE, is_counter=True),
    "tokens": Family(
        "engine_tokens", "Tokens that the device's present worker has generated.", _DEVICE, is_counter=True
    ),
    "prompt_tokens": Family(
        "engine_prompt_tokens", "Prompt tokens that it has taken, cached ones included.", _DEVICE, is_counter=True
    ),
    "cached_tokens": Family(
        "engine_cached_tokens", "Those of them whose KV was there already.", _DEVICE, is_counter=True
    ),
    "steps": Family("engine_steps", "Steps that the engine has completed.", _DEVICE, is_counter=True),
    "cycles": Family("worker_loads", "Loads that the device's present worker has completed.", _DEVICE, is_counter=True),
}
"""By field of DeviceState, or what is worked out from several."""
MODEL_FAMILIES = {
    "replicas": Family("model_replicas", "Replicas, in any state.", _MODEL),
    "running": Family("model_running_jobs", "Jobs that hold a slot.", _MODEL),
    "queued": Family("model_queued_jobs", "Jobs that wait for a slot or for the model.", _MODEL),
    "parallel": Family("model_slots", "Slots of a replica.", _MODEL),
    "sequences": Family("model_batch_sequences", "Sequences that the engine computes together.", _MODEL),
    "kv_used": Family("model_kv_used_tokens", "Tokens in KV caches, of running and idle sequences.", _MODEL),
    "kv_tokens": Family("model_kv_tokens", "Tokens that a replica's KV cache holds.", _MODEL),
    "memory_mb": Family("model_memory_bytes", "Memory reserved, or estimated, for a replica.", _MODEL),
    "load_s": Family("model_load_seconds", "Time that the last load took.", _MODEL),
    "cpu_layers": Family("model_cpu_layers", "Layers of a model on a GPU that the host's CPU computes.", _MODEL),
    "pinned": Family("model_pinned", "1: never unloaded to make room.", _MODEL),
}
FAMILIES = (
    NODE_UP,
    NODE_SERVING,
    EVICTIONS,
    DISK_BYTES,
    DISK_FREE_BYTES,
    DEVICE_STATE,
    MODEL_STATUS,
    *DEVICE_FAMILIES.values(),
    *MODEL_FAMILIES.values(),
)


def collect(nodes: Iterable[Seen]) -> Iterator[Metric]:
    """Yield every family, with a sample for whatever is known. A neuron that is away tells nothing but that."""
    made = {f: (CounterMetricFamily if f.is_counter else GaugeMetricFamily)("helexa_" + f.name, f.help, labels=f.labels)
            for f in FAMILIES}  # fmt: skip
    for name, is_up, state in nodes:
        made[NODE_UP].add_metric([name], float(is_up))
        made[NODE_SERVING].add_metric([name], float(is_up and state is not None and state.state == "serving"))
        if state is None or not is_up:
            continue
        for reason, count in state.evictions.items():
            made[EVICTIONS].add_metric([name, reason], count)
        for disk in state.disks:
            made[DISK_BYTES].add_metric([name, disk.folder], disk.total_mb * MIB)
            made[DISK_FREE_BYTES].add_metric([name, disk.folder], disk.free_mb * MIB)
        for device in state.devices:
            labels = [name, device.uuid, device.name]
            made[DEVICE_STATE].add_metric([*labels, device.state], 1.0)
            for field, value in _device_values(device).items():
                if value is not None:
                    made[DEVICE_FAMILIES[field]].add_metric(labels, value)
        for model in state.models:
            made[MODEL_STATUS].add_metric([name, model.id, model.status], 1.0)
            for field, value in _model_values(model).items():
                if value is not None:
                    made[MODEL_FAMILIES[field]].add_metric([name, model.id], value)
    yield from made.values()


def _device_values(device: DeviceState) -> dict[str, float | None]:
    free_mb = None
    if device.memory_mb is not None:
        free_mb = max(0, device.memory_mb - max(device.reserved_mb, device.used_mb or 0))
    return {
        "memory_mb": _bytes(device.memory_mb),
        "used_mb": _bytes(device.used_mb),
        "free_mb": _bytes(free_mb),
        "reserved_mb": _bytes(device.reserved_mb),
        "utilization": device.utilization,
        "temperature_c": device.temperature_c,
        "power_w": device.power_w,
        "restarts": device.restarts,
        "xids": device.xids,
        "hangs": device.hangs,
        "tokens": device.tokens,
        "prompt_tokens": device.prompt_tokens,
        "cached_tokens": device.cached_tokens,
        "steps": device.steps,
        "cycles": device.cycles,
    }


def _model_values(model: ModelState) -> dict[str, float | None]:
    return {
        "replicas": len(model.replicas),
        "running": model.running,
        "queued": model.queued,
        "parallel": model.parallel,
        "sequences": _sum(r.sequences for r in model.replicas),
        "kv_used": _sum(r.kv_used for r in model.replicas),
        "kv_tokens": model.kv_tokens,
        "memory_mb": _bytes(model.memory_mb),
        "load_s": model.load_s,
        "cpu_layers": max((r.cpu_layers for r in model.replicas if r.cpu_layers is not None), default=None),
        "pinned": float(model.pinned),
    }


def _sum(values: Iterable[int | None]) -> float | None:
    """Return the sum of those that are known, None if there are some and none is known."""
    every = list(values)
    known = [v for v in every if v is not None]
    return float(sum(known)) if known or not every else None


def _bytes(mib: int | None) -> float | None:
    return None if mib is None else float(mib * MIB)
