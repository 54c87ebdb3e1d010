"""The probe process: what NVML says of the GPUs, one reading a second, and one whenever the supervisor cannot wait.

A process of its own because NVML may hang or crash with the driver; its silence is itself a sign.
"""

import argparse
import select
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pynvml

from common.frames import FrameSocket
from neuron.discovery import Gpu, ProbeReading, Xid
from neuron.process.lifeline import attach

MIB = 2**20
DOUBLE_BIT_ECC = 48
"""The Xid that comes with an ECC error which cannot be corrected."""
_NVIDIA, _DISPLAY = "0x10de", "0x03"


class Probe:
    """One NVML session, opened again after it has failed."""

    def __init__(self) -> None:
        self._is_open = False
        self._events: Any = None

    def read(self) -> ProbeReading:
        """Return a reading; one with `error` if NVML fails."""
        pci_gpus = find_pci_gpus()
        try:
            self._open()
            count = pynvml.nvmlDeviceGetCount()
            devices = [gpu for i in range(count) if (gpu := _read_gpu(i)) is not None]
            return ProbeReading(
                devices=devices, driver=_text(pynvml.nvmlSystemGetDriverVersion()), pci_gpus=pci_gpus, xids=self._xids()
            )
        except pynvml.NVMLError as error:
            self._close()
            return ProbeReading(error=_remedy(error) if pci_gpus else None, pci_gpus=pci_gpus)

    def _open(self) -> None:
        if self._is_open:
            return
        pynvml.nvmlInit()
        self._is_open = True
        wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        try:
            self._events = pynvml.nvmlEventSetCreate()
            for index in range(pynvml.nvmlDeviceGetCount()):
                pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(index), wanted, self._events)
        except pynvml.NVMLError:
            self._events = None  # not every GPU and every container offers events; readings go on without

    def _close(self) -> None:
        self._is_open, self._events = False, None

    def _xids(self) -> list[Xid]:
        found: list[Xid] = []
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError_Timeout:
                break
            is_ecc = event.eventType == pynvml.nvmlEventTypeDoubleBitEccError  # whose data is no Xid
            uuid = _text(pynvml.nvmlDeviceGetUUID(event.device))
            found.append(Xid(uuid, DOUBLE_BIT_ECC if is_ecc else int(event.eventData)))
        return found


def _read_gpu(index: int) -> Gpu | None:
    """Return what NVML says of a GPU; None for one that is gone from the bus, which says nothing of the others."""
    try:
        return _read_there(pynvml.nvmlDeviceGetHandleByIndex(index), index)
    except pynvml.NVMLError_GpuIsLost:
        return None


def _read_there(handle: Any, index: int) -> Gpu:
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    load = _optional(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _optional(pynvml.nvmlDeviceGetPowerUsage, handle)
    mig = _optional(pynvml.nvmlDeviceGetMigMode, handle)
    users = [
        *(_optional(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []),
        *(_optional(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []),
    ]
    processes = {p.pid: (p.usedGpuMemory or 0) // MIB for p in users}  # one that does both is in both lists
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        pci=_text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
        index=index,
        memory_total_mb=None if memory is None else memory.total // MIB,
        memory_used_mb=None if memory is None else memory.used // MIB,
        utilization=None if load is None else load.gpu / 100,
        temperature_c=_optional(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        processes=processes,
        are_strangers=any(not Path(f"/proc/{pid}").exists() for pid in processes),
        mig=bool(mig and mig[0]),
    )


def _optional(query: Any, *arguments: Any) -> Any:
    """Return what NVML says, None where this GPU or driver does not tell."""
    try:
        return query(*arguments)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_Unknown):
        return None


def find_pci_gpus(root: Path = Path("/sys/bus/pci/devices")) -> list[str]:
    """Return the PCI addresses of NVIDIA display controllers; they are there whatever the driver does."""
    found = []
    for device in sorted(root.glob("*")):
        try:
            vendor, kind = ((device / n).read_text().strip() for n in ("vendor", "class"))
        except OSError:
            continue  # unplugged while we looked
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            found.append(device.name)
    return found


def _remedy(error: Exception) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "the NVIDIA driver's library (libnvidia-ml.so.1) is missing; install the NVIDIA driver"
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return "the NVIDIA kernel driver is not loaded; try: modprobe nvidia, or reboot after a driver update"
    if isinstance(error, pynvml.NVMLError_LibRmVersionMismatch):
        return "the NVIDIA driver was updated since the boot; reboot"
    return f"NVML fails: {error}; try: nvidia-smi"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="neuron.probe", description=__doc__)
    parser.add_argument("--once", action="store_true", help="one reading, then exit")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between readings")
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--supervisor-pid", type=int)
    parser.add_argument("--line", type=int, help="file descriptor of the socket to the supervisor")
    arguments = parser.parse_args()
    if arguments.lifeline is not None:
        attach(arguments.lifeline, arguments.supervisor_pid)
    probe = Probe()
    if arguments.once:
        sys.stdout.buffer.write(msgspec.json.encode(probe.read()))
        return 0
    end = socket.socket(fileno=arguments.line)
    line = FrameSocket(end)
    while True:
        line.send([msgspec.json.encode(probe.read())])
        if select.select([end], [], [], arguments.interval)[0]:
            try:
                line.receive()  # whatever it is, it wants a reading now
            except EOFError:
                return 0


if __name__ == "__main__":
    sys.exit(main())
