"""Which devices this neuron serves: the configuration held against what the probe saw. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from common.errors import ConfigError
from common.messages import WorkerHello
from neuron.settings import DeviceEntry

CPU_SHARE = 0.5
"""Of the host's RAM, for the one CPU device of a host without a GPU and without a `devices:` list."""

CUDA_CONTEXT_MB = 457
"""What a CUDA context with llama.cpp's kernels takes of a GPU, beside all models: as much as ollama has set aside for
it since 2024 (`cudaMinimumMemory` in its discovery of GPUs). llama-server leaves 1024 MiB for everything unforeseen
(--fit-target), of which what is measured after the first load needs nothing here."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU as NVML sees it. Memory in MiB; None is unknown."""

    uuid: str
    name: str
    pci: str
    index: int
    memory_total_mb: int | None = None
    memory_used_mb: int | None = None
    utilization: float | None = None
    """0 to 1."""
    temperature_c: float | None = None
    power_w: float | None = None
    processes: dict[int, int] = {}
    """Pid → MiB, of those that compute and those that draw."""
    are_strangers: bool = False
    """Whether the pids are those of another namespace, so that nobody can be told from anybody."""
    mig: bool = False


class Xid(msgspec.Struct, frozen=True):
    """A driver error event."""

    uuid: str
    xid: int


class ProbeReading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the probe."""

    devices: list[Gpu] = []
    driver: str | None = None
    error: str | None = None
    """Why NVML gives nothing, with the remedy."""
    pci_gpus: list[str] = []
    """PCI addresses of NVIDIA display controllers, whatever NVML says."""
    xids: list[Xid] = []


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the host, served or not."""

    uuid: str
    name: str
    kind: Literal["cuda", "cpu"]
    memory_mb: int | None = None
    """None is unknown."""
    reserve_mb: int = 0
    """Kept for others."""
    context_mb: int = 0
    """What a worker takes before its first model."""
    threads: int | None = None
    visible: str = ""
    """CUDA_VISIBLE_DEVICES of its worker."""
    unavailable: str | None = None
    """Why it does not serve, and the remedy."""

    @property
    def for_models_mb(self) -> int | None:
        """What models may use of it; None is unknown."""
        return None if self.memory_mb is None else max(0, self.memory_mb - self.reserve_mb - self.context_mb)


def resolve_devices(
    entries: Literal["auto"] | list[DeviceEntry], reading: ProbeReading | None, host_memory_mb: int
) -> list[Device]:
    """Return the devices in the order of the configuration.

    A GPU that is there but cannot be used is returned with the reason; the CPU serves only if `devices` says so or no
    GPU exists. Raises ConfigError where the entries contradict each other.
    """
    reading = reading or ProbeReading()
    if entries == "auto":
        return _automatic(reading, host_memory_mb)
    devices: list[Device] = []
    taken: dict[str, bool] = {}
    cpus = 0
    for index, entry in enumerate(entries):
        key = f"devices[{index}]"
        if entry.kind == "cpu":
            devices.append(_cpu(cpus, entry.memory_mb, entry))
            cpus += 1
            continue
        gpu = _select(entry, key, reading)
        if isinstance(gpu, Device):
            devices.append(gpu)
            continue
        if gpu.uuid in taken and not (entry.test_only and taken[gpu.uuid]):
            raise ConfigError(f"{key}: GPU {gpu.uuid} is listed twice; sharing one needs test_only: true in each row")
        shares = sum(1 for d in devices if d.visible == gpu.uuid)
        taken[gpu.uuid] = entry.test_only
        if not entry.exclude:
            devices.append(_gpu(gpu, entry, shares))
    if not devices:
        raise ConfigError("devices: nothing is left to serve; every row is excluded, or the list is empty")
    return devices


def _automatic(reading: ProbeReading, host_memory_mb: int) -> list[Device]:
    if reading.devices:
        return [_gpu(g, DeviceEntry(uuid=g.uuid), 0) for g in reading.devices]
    if reading.pci_gpus:
        reason = reading.error or "the NVIDIA driver does not list it; try: nvidia-smi"
        return [
            Device(uuid=f"PCI-{address}", name=f"NVIDIA GPU at {address}", kind="cuda", unavailable=reason)
            for address in reading.pci_gpus
        ]
    return [_cpu(0, int(host_memory_mb * CPU_SHARE), DeviceEntry(kind="cpu"))]


def _cpu(number: int, memory_mb: int | None, entry: DeviceEntry) -> Device:
    return Device(
        uuid=f"CPU-{number}",
        name="CPU",
        kind="cpu",
        memory_mb=memory_mb,
        reserve_mb=entry.reserve_mb,
        threads=entry.threads,
    )


def _gpu(gpu: Gpu, entry: DeviceEntry, shares: int) -> Device:
    mig = "it is in MIG mode, which is not supported yet; switch it off with: nvidia-smi -mig 0" if gpu.mig else None
    return Device(
        uuid=gpu.uuid if not shares else f"{gpu.uuid}#{shares + 1}",
        name=gpu.name,
        kind="cuda",
        memory_mb=entry.memory_mb or gpu.memory_total_mb,
        reserve_mb=entry.reserve_mb,
        context_mb=CUDA_CONTEXT_MB,
        visible=gpu.uuid,
        unavailable=mig,
    )


def _select(entry: DeviceEntry, key: str, reading: ProbeReading) -> Gpu | Device:
    """Return the GPU an entry means, or an unavailable device that says why there is none."""
    wanted = entry.uuid or entry.name or entry.pci or ""
    if entry.uuid:
        found = [g for g in reading.devices if g.uuid == entry.uuid]
    elif entry.pci:
        found = [g for g in reading.devices if g.pci.lower().endswith(entry.pci.lower())]
    else:
        found = [g for g in reading.devices if wanted.lower() in g.name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(g.uuid for g in found)
        raise ConfigError(f"{key}: name '{wanted}' fits {len(found)} GPUs; choose one by uuid: {choices}")
    there = ", ".join(f"{g.uuid} ({g.name})" for g in reading.devices)
    reason = reading.error or (f"there are: {there}" if there else "no NVIDIA GPU is seen on this host")
    return Device(uuid=wanted, name=wanted, kind="cuda", unavailable=f"{key}: no GPU fits '{wanted}': {reason}")


def worker_backend_problem(devices: Sequence[Device], hello: WorkerHello) -> str | None:
    """Return why a worker cannot serve its devices, and the remedy; None if it can."""
    gpus = {d.visible for d in devices if d.kind != "cpu"}
    if len(hello.devices) >= len(gpus):
        return None
    if hello.devices:
        return f"llama.cpp sees {len(hello.devices)} of {len(gpus)} GPUs; check nvidia-smi. Build: {hello.build}"
    if hello.backend == "CPU":
        return (
            "llama.cpp sees no GPU: either it was built without CUDA (reinstall llama-cpp-python with "
            "CMAKE_ARGS=-DGGML_CUDA=on), or the driver is not ready (reboot after a driver update; check nvidia-smi "
            f"and that /dev/nvidia-uvm exists: nvidia-modprobe -u -c 0). Build: {hello.build}"
        )
    return f"llama.cpp has a {hello.backend} backend but sees no device; check nvidia-smi. Build: {hello.build}"


def format_device_block(reading: ProbeReading, host_memory_mb: int) -> str:
    """Return a `devices:` block to paste into neuron.yaml."""
    lines = []
    if reading.error:
        lines.append(f"# {reading.error}")
    lines.append("devices:")
    for gpu in reading.devices:
        memory = "memory unknown" if gpu.memory_total_mb is None else f"{gpu.memory_total_mb} MiB"
        lines.append(f"  - {{uuid: {gpu.uuid}, reserve_mb: 0}}  # {gpu.name}, {memory}, PCI {gpu.pci}")
    if not reading.devices:
        if reading.pci_gpus:
            lines[0:0] = [f"# an NVIDIA GPU is at PCI {', '.join(reading.pci_gpus)}, but cannot be used yet"]
        else:
            lines[0:0] = ["# no NVIDIA GPU on this host: one device on the CPU"]
        lines.append(f"  - {{kind: cpu, memory_mb: {int(host_memory_mb * CPU_SHARE)}}}")
    return "\n".join(lines)
