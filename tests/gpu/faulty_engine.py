"""The real engine with one addition: SIGUSR1 has the GPU write to an address that is not there.

The driver then fails every later call of this process with "an illegal memory access", and llama.cpp aborts, as it does
with a real fault of the driver or of a kernel.
"""

import ctypes
import signal

from neuron.prep.llama_vocabulary import open_vocabulary
from neuron.worker import llama_engine

__all__ = ["create_engine", "open_vocabulary"]

_PTX = b"""
.version 7.0
.target sm_50
.address_size 64
.visible .entry wild() {
    .reg .b64 %rd<2>;
    .reg .b32 %r<2>;
    mov.b64 %rd1, 8;
    mov.b32 %r1, 1;
    st.global.b32 [%rd1], %r1;
    ret;
}
\0"""


def create_engine(threads: int, kind: str) -> llama_engine.LlamaEngine:
    """Return the real engine, with the handler installed."""
    signal.signal(signal.SIGUSR1, lambda *_: _write_wildly())
    return llama_engine.create_engine(threads, kind)


def _write_wildly() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda.cuInit(0))
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))  # the one that llama.cpp uses
    _check(cuda.cuCtxSetCurrent(context))
    _check(cuda.cuModuleLoadData(ctypes.byref(module), _PTX))
    _check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"wild"))
    _check(cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None))


def _check(result: int) -> None:
    assert result == 0, f"CUDA driver error {result}"
