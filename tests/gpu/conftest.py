"""GPU tests are collected everywhere and skipped, with the reason, where there is no GPU or no llama.cpp for it."""

import subprocess
import sys

import msgspec
import pytest

from neuron.discovery import Gpu, ProbeReading
from tests.support.harness import ROOT


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """Return the first GPU, seen by a probe process: NVML is never called in the tests' own process."""
    done = subprocess.run(
        [sys.executable, "-m", "neuron.probe", "--once"], capture_output=True, timeout=60, check=True, cwd=ROOT
    )
    reading = msgspec.json.decode(done.stdout, type=ProbeReading)
    if not reading.devices:
        pytest.skip(reading.error or "no NVIDIA GPU on this host")
    code = "import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())"
    if subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode:
        pytest.skip("llama.cpp is compiled without CUDA here; see docs/gpu-hosts.md")
    return reading.devices[0]
