"""Whether the engine that is installed is one that this program was written for; and the backends it loads at run time.

Imports no engine: the two processes that have one hand it over, before they call anything of it.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

LEAST, BELOW = (0, 3, 36), (0, 4)
"""Versions of llama-cpp-python. Its low-level API follows llama.cpp's header, which changes within a line too."""
SIZES = {
    "llama_model_params": 80,
    "llama_context_params": 160,
    "llama_batch": 56,
    "llama_token_data": 12,
    "llama_token_data_array": 32,
    "llama_sampler_chain_params": 1,
}
"""In bytes, on 64-bit machines: what crosses into llama.cpp. One that has grown would be read past its end."""
RECORD = "abi.json"
"""Beside the libraries of a packaged engine: the sizes as its C compiler laid them out."""


def prepare(binding: Any, libggml: Any) -> None:
    """Check the engine, and load its backends where they are files of their own.

    Raises ImportError: another version, other structures, or no backend for this processor.
    """
    folder = Path(binding.__file__).parent / "lib"
    check_version(binding.__version__)
    check_sizes({name: ctypes.sizeof(getattr(binding, name)) for name in SIZES}, "its Python binding")
    record = folder / RECORD
    if record.is_file():
        check_sizes(json.loads(record.read_text(encoding="utf-8")), "its library")
    _load_backends(libggml, folder)


def check_version(version: str) -> None:
    """Raises ImportError for a version outside of the line."""
    numbers = tuple(int(n) if n.isdecimal() else 0 for n in version.split(".")[:3])
    if not LEAST <= numbers < BELOW:
        raise ImportError(
            f"llama-cpp-python {version} is not an engine of this neuron, which takes {_dotted(LEAST)} up to, "
            f"but not including, {_dotted(BELOW)}; install one of these"
        )


def check_sizes(found: dict[str, int], whose: str) -> None:
    """Raises ImportError naming the structures that differ."""
    other = [f"{n} has {found[n]} bytes, not {size}" for n, size in SIZES.items() if found.get(n, size) != size]
    if other:
        raise ImportError(
            f"the engine does not fit this neuron: in {whose} {'; '.join(other)}; install the engine that came with it"
        )


def _load_backends(libggml: Any, folder: Path) -> None:
    count = libggml.ggml_backend_reg_count
    count.restype = ctypes.c_size_t
    if count():
        return  # compiled in
    load = libggml.ggml_backend_load_all_from_path
    load.argtypes, load.restype = [ctypes.c_char_p], None
    load(bytes(folder))
    if not count():
        raise ImportError(f"{folder}: no backend there can be loaded on this machine; see `ls {folder}/libggml-*.so`")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
