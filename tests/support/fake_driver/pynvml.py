"""Stands before NVIDIA's own module on the path of a neuron under test: says what a file of JSON says of the driver.

`$HELEXA_TEST_DRIVER` names the file; tests/support/driver.py writes it. Errors and constants are the real module's.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_FILE = Path(os.environ["HELEXA_TEST_DRIVER"])
_HERE = str(Path(__file__).parent)
_MIB = 2**20


def _load_real() -> Any:
    spec = importlib.machinery.PathFinder.find_spec("pynvml", [p for p in sys.path if p != _HERE])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    ours, sys.modules["pynvml"] = sys.modules["pynvml"], module  # it makes its errors by its own name
    spec.loader.exec_module(module)
    sys.modules["pynvml"] = ours
    return module


_real = _load_real()
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("__")})


def _state() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(_FILE.read_text())
    return state


def _check() -> dict[str, Any]:
    """Return the state of a driver that answers; hang or fail with one that does not."""
    while (state := _state())["hangs"]:
        time.sleep(0.02)
    if state["fails"]:
        raise getattr(_real, state["fails"])()
    return state


def nvmlInit() -> None:
    _check()


def nvmlSystemGetDriverVersion() -> str:
    return "580.0"


def nvmlDeviceGetCount() -> int:
    return len(_check()["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    state = _check()
    gpu: str = state["gpus"][index]
    if gpu in state["lost"]:
        raise _real.NVMLError_GpuIsLost()
    return gpu


def nvmlDeviceGetUUID(handle: str) -> str:
    return handle


def nvmlDeviceGetName(handle: str) -> str:
    return "Fake RTX"


def nvmlDeviceGetPciInfo(handle: str) -> SimpleNamespace:
    return SimpleNamespace(busId=f"0000:{_state()['gpus'].index(handle):02x}:00.0")


def nvmlDeviceGetMemoryInfo(handle: str) -> SimpleNamespace:
    return SimpleNamespace(total=2000 * _MIB, used=100 * _MIB)


def nvmlDeviceGetUtilizationRates(handle: str) -> None:
    raise _real.NVMLError_NotSupported()


nvmlDeviceGetPowerUsage = nvmlDeviceGetMigMode = nvmlDeviceGetUtilizationRates


def nvmlDeviceGetTemperature(handle: str, sensor: int) -> int:
    return 40


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=100 * _MIB) for pid in _state()["held"].get(handle, [])]


def nvmlDeviceGetGraphicsRunningProcesses(handle: str) -> list[SimpleNamespace]:
    return []


def nvmlEventSetCreate() -> SimpleNamespace:
    return SimpleNamespace(seen=len(_state()["events"]))  # what happened before is not told again


def nvmlDeviceRegisterEvents(handle: str, kinds: int, events: SimpleNamespace) -> None:
    pass


def nvmlEventSetWait_v2(events: SimpleNamespace, timeout_ms: int) -> SimpleNamespace:
    happened = _state()["events"]
    if events.seen >= len(happened):
        raise _real.NVMLError_Timeout()
    event = happened[events.seen]
    events.seen += 1
    kind = _real.nvmlEventTypeDoubleBitEccError if event["xid"] is None else _real.nvmlEventTypeXidCriticalError
    return SimpleNamespace(device=event["gpu"], eventType=kind, eventData=event["xid"] or 0)
