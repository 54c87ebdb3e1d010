"""Which devices are served: what the configuration says, held against what is there, never silently the CPU."""

import pytest

from common.errors import ConfigError
from common.messages import WorkerHello
from neuron.discovery import Device, Gpu, ProbeReading, format_device_block, resolve_devices, worker_backend_problem
from neuron.settings import DeviceEntry

A = Gpu(uuid="GPU-a", name="NVIDIA GeForce RTX 3060", pci="00000000:01:00.0", index=0, memory_total_mb=12288)
B = Gpu(uuid="GPU-b", name="NVIDIA GeForce RTX 5090", pci="00000000:02:00.0", index=1, memory_total_mb=32607)
BOTH = ProbeReading(devices=[A, B], driver="580", pci_gpus=["0000:01:00.0", "0000:02:00.0"])
BROKEN = ProbeReading(error="the driver is not loaded; try: modprobe nvidia", pci_gpus=["0000:01:00.0"])
RAM = 16000


def test_auto_serves_every_gpu_by_its_uuid() -> None:
    devices = resolve_devices("auto", BOTH, RAM)
    assert [(d.uuid, d.kind, d.memory_mb, d.visible) for d in devices] == [
        ("GPU-a", "cuda", 12288, "GPU-a"), ("GPU-b", "cuda", 32607, "GPU-b"),
    ]  # fmt: skip


def test_auto_without_any_gpu_serves_one_cpu_device() -> None:
    [device] = resolve_devices("auto", ProbeReading(), RAM)
    assert (device.uuid, device.kind, device.memory_mb, device.visible) == ("CPU-0", "cpu", 8000, "")


def test_a_gpu_that_cannot_be_used_is_never_replaced_by_the_cpu() -> None:
    [device] = resolve_devices("auto", BROKEN, RAM)
    assert device.kind == "cuda"
    assert "modprobe" in (device.unavailable or "")


@pytest.mark.parametrize("entry", [{"uuid": "GPU-b"}, {"name": "5090"}, {"pci": "02:00.0"}, {"pci": "0000:02:00.0"}])
def test_a_gpu_is_chosen_by_uuid_name_or_address(entry: dict[str, str]) -> None:
    [device] = resolve_devices([DeviceEntry(reserve_mb=512, **entry)], BOTH, RAM)  # type: ignore[arg-type]
    assert (device.uuid, device.reserve_mb, device.unavailable) == ("GPU-b", 512, None)


def test_a_selector_that_fits_nothing_is_an_unavailable_device_that_lists_what_there_is() -> None:
    [device] = resolve_devices([DeviceEntry(name="H100")], BOTH, RAM)
    assert "H100" in (device.unavailable or "")
    assert "GPU-a" in (device.unavailable or "")
    [device] = resolve_devices([DeviceEntry(uuid="GPU-x")], BROKEN, RAM)
    assert "modprobe" in (device.unavailable or "")


def test_a_name_that_fits_two_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="fits 2 GPUs; choose one by uuid: GPU-a, GPU-b"):
        resolve_devices([DeviceEntry(name="GeForce")], BOTH, RAM)


def test_an_excluded_gpu_is_not_served_and_excluding_all_is_refused() -> None:
    entries = [DeviceEntry(uuid="GPU-a", exclude=True), DeviceEntry(uuid="GPU-b")]
    assert [d.uuid for d in resolve_devices(entries, BOTH, RAM)] == ["GPU-b"]
    with pytest.raises(ConfigError, match="nothing is left"):
        resolve_devices(entries[:1], BOTH, RAM)
    with pytest.raises(ConfigError, match="nothing is left"):
        resolve_devices([], BOTH, RAM)


def test_one_gpu_twice_needs_test_only_in_both_rows() -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        resolve_devices([DeviceEntry(uuid="GPU-a"), DeviceEntry(uuid="GPU-a", test_only=True)], BOTH, RAM)
    share = DeviceEntry(uuid="GPU-a", test_only=True, memory_mb=4000)
    devices = resolve_devices([share, share], BOTH, RAM)
    assert [(d.uuid, d.visible, d.memory_mb) for d in devices] == [
        ("GPU-a", "GPU-a", 4000), ("GPU-a#2", "GPU-a", 4000),
    ]  # fmt: skip


def test_virtual_cpu_devices_are_numbered_in_order() -> None:
    entries = [DeviceEntry(kind="cpu", memory_mb=m, threads=1) for m in (100, 200)]
    assert [(d.uuid, d.memory_mb) for d in resolve_devices(entries, None, RAM)] == [("CPU-0", 100), ("CPU-1", 200)]


def test_a_gpu_in_mig_mode_is_unavailable_with_the_remedy() -> None:
    mig = Gpu(uuid="GPU-m", name="H100", pci="0", index=0, mig=True)
    [device] = resolve_devices("auto", ProbeReading(devices=[mig]), RAM)
    assert "nvidia-smi -mig 0" in (device.unavailable or "")


def test_a_worker_without_its_gpu_is_a_problem_with_a_remedy() -> None:
    gpu = Device(uuid="GPU-a", name="x", kind="cuda")
    cpu = Device(uuid="CPU-0", name="x", kind="cpu")

    def hello(backend: str, devices: list[str]) -> WorkerHello:
        return WorkerHello(pid=1, incarnation="i", build="b7", backend=backend, devices=devices)

    assert worker_backend_problem([cpu], hello("CPU", [])) is None
    assert worker_backend_problem([gpu], hello("CUDA", ["CUDA0: x"])) is None
    assert "GGML_CUDA" in (worker_backend_problem([gpu], hello("CPU", [])) or "")
    assert "b7" in (worker_backend_problem([gpu], hello("CPU", [])) or "")
    assert "nvidia-smi" in (worker_backend_problem([gpu], hello("CUDA", [])) or "")
    other, share = (Device(uuid=u, name="x", kind="cuda", visible=v) for u, v in (("GPU-b", "GPU-b"), ("GPU-a#2", "")))
    assert "1 of 2 GPUs" in (worker_backend_problem([gpu, other], hello("CUDA", ["CUDA0: x"])) or "")
    assert worker_backend_problem([gpu, share], hello("CUDA", ["CUDA0: x"])) is None


@pytest.mark.parametrize("reading", [BOTH, BROKEN, ProbeReading()])
def test_the_printed_block_is_a_configuration(reading: ProbeReading) -> None:
    import msgspec
    import yaml

    block = yaml.safe_load(format_device_block(reading, RAM))
    entries = msgspec.convert(block["devices"], list[DeviceEntry])
    devices = resolve_devices(entries, reading, RAM)
    assert [d.uuid for d in devices] == ([g.uuid for g in reading.devices] or ["CPU-0"])
