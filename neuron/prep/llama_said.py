"""What llama.cpp says to prep: complaints, for the one who has to explain a refusal, and sizes. Imports llama_cpp."""

import ctypes
import re

import llama_cpp
from llama_cpp._ggml import libggml

from neuron import binding

_ERROR = 4
"""ggml_log_level."""
_UNKNOWN_ARCHITECTURE = "unknown model architecture"
_ILL_TYPED = re.compile(r"Bad metadata override type for key '(.+?)', expected (\w+) but got (\w+)")
_lines: list[str] = []
"""Since the last `clear`."""
_errors: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    words = text.decode(errors="replace")
    if level == _ERROR:
        _errors.append(re.sub(r"^[\w:~]+: ", "", words.strip()))
    _lines.append(words)


def listen() -> None:
    """Take llama.cpp's log, which goes to whoever asked for it last."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


listen()
binding.prepare(llama_cpp, libggml)
llama_cpp.llama_backend_init()


def build() -> str:
    """Return the version of the binding."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def clear() -> None:
    """Forget what was said."""
    _lines.clear()
    _errors.clear()


def complaint() -> str:
    """Return the first error since `clear`: it is the cause, the rest report it upwards."""
    text = next(iter(_errors), "it gives no reason")
    if _UNKNOWN_ARCHITECTURE in text:
        text += f"; it needs a newer llama.cpp; this is {build()}"
    return text


def everything() -> str:
    """Return all that was said since `clear`."""
    return "".join(_lines)


def ill_typed() -> str | None:
    """Return what is wrong with an override_kv, None if llama.cpp took all that it looked at."""
    match = _ILL_TYPED.search(everything())
    return None if match is None else f"override_kv: '{match[1]}' has the type {match[2]} in the file, not {match[3]}"
