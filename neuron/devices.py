"""The devices of this host, found once at start: one reading of a short-lived probe, held against the configuration."""

import os
import subprocess
import sys

import msgspec

from common.errors import ConfigError
from neuron.discovery import Device, ProbeReading, resolve_devices
from neuron.settings import NeuronSettings

PROBE_S = 20.0
"""A driver that needs longer for its first reading is not usable."""


class _EngineReport(msgspec.Struct):
    build: str
    backend: str
    devices: list[str]


def find_devices(settings: NeuronSettings) -> list[Device]:
    """Resolve `devices:`. Hosts that list only CPU devices are never asked for GPUs. Raises ConfigError."""
    entries = settings.devices
    only_cpu = entries != "auto" and all(e.kind == "cpu" for e in entries)
    reading = None if only_cpu else read_once()
    return resolve_devices(entries, reading, host_memory_mb())


def read_once() -> ProbeReading:
    """Run the probe for one reading: NVML may hang or crash, so it is never called in this process.

    Raises ConfigError if it gives none.
    """
    command = [sys.executable, "-m", "neuron.probe", "--once"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PROBE_S, check=False)
        return msgspec.json.decode(done.stdout, type=ProbeReading)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"devices: the NVIDIA driver gave no reading in {PROBE_S:g} s; try: nvidia-smi") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"devices: the probe gave no reading: {error}") from None


def read_engine(kind: str) -> tuple[str, str, list[str]]:
    """Return llama.cpp's build, backend and devices for a device of this kind, as a short-lived process reports them.

    Raises ConfigError if it does not.
    """
    command = [sys.executable, "-m", "neuron.worker.facts", kind]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False)
        facts = msgspec.json.decode(done.stdout, type=_EngineReport)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"llama.cpp gave no answer in {PROBE_S:g} s") from None
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(f"llama.cpp cannot be used: {lines[-1] if lines else f'status {done.returncode}'}") from None
    return facts.build, facts.backend, facts.devices


def host_memory_mb() -> int:
    """Return this host's RAM in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
