"""llama.cpp's parameters from a profile's options, and what is in force afterwards. Imports llama_cpp."""

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
from llama_cpp._ggml import libggml

from common.engine_options import BATCH_TOKENS, CACHE_TYPES, EngineOptions, attention_rows, parse_kv, split_override
from neuron.worker.engine import LoadError
from neuron.worker.llama_log import Line

ALL_LAYERS = -1
MOST_DEVICES = int(llama_cpp.llama_max_devices())
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
_ROPE_SCALINGS = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_FLASH = {"auto": -1, "off": 0, "on": 1}
_NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}
_AUTO, _READ, _MMAP, _MLOCK, _MMAP_MLOCK, _DIRECT_IO = -1, 0, 1, 2, 3, 4
"""llama_load_mode."""
_KV_INT, _KV_FLOAT, _KV_BOOL, _KV_STR = 0, 1, 2, 3
"""llama_model_kv_override_type."""
_EXPERTS_CPU = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class _TensorPlace(ctypes.Structure):
    """llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_device_count = _ggml("ggml_backend_dev_count", ctypes.c_size_t)
_device_get = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_device_buffer_type = _ggml("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
_buffer_type_name = _ggml("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)


class ModelParams:
    """llama_model_params with all that they point at; to be kept until the model is read."""

    def __init__(
        self, options: EngineOptions, kind: str, progress: Callable[[float], bool], gpus: Sequence[int] = ()
    ) -> None:
        """`gpus`: handles of those that share the model evenly. Raises LoadError: no such buffer type."""
        params = self.value = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = _gpu_layers(options, kind)
        params.split_mode = _SPLIT_MODES[options.split_mode or ("layer" if len(gpus) > 1 else "none")]
        params.main_gpu = options.main_gpu or 0
        params.load_mode = _load_mode(options)
        self._progress = llama_cpp.llama_progress_callback(lambda fraction, _: progress(fraction))
        params.progress_callback = self._progress
        shares = options.tensor_split or [1.0] * len(gpus)
        if shares:
            self._split = (ctypes.c_float * MOST_DEVICES)(*shares)
            params.tensor_split = ctypes.cast(self._split, ctypes.POINTER(ctypes.c_float))
        if gpus:
            self._devices = (ctypes.c_void_p * (len(gpus) + 1))(*gpus)
            params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        places = _tensor_places(options)
        if places:
            self._places = (_TensorPlace * (len(places) + 1))(*places)
            params.tensor_buft_overrides = ctypes.cast(self._places, ctypes.c_void_p)
        if options.override_kv:
            self._overrides = kv_overrides(options.override_kv)
            params.kv_overrides = ctypes.cast(self._overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override))


def _gpu_layers(options: EngineOptions, kind: str) -> int:
    if kind == "cpu":
        return 0
    return options.n_gpu_layers if isinstance(options.n_gpu_layers, int) else ALL_LAYERS


def _load_mode(options: EngineOptions) -> int:
    match options.load_mode:
        case "read":
            return _MLOCK if options.mlock else _READ
        case "direct_io":
            return _DIRECT_IO
        case "mmap":
            return _MMAP_MLOCK if options.mlock else _MMAP
        case _:
            return _MMAP_MLOCK if options.mlock else _AUTO


def _tensor_places(options: EngineOptions) -> list[_TensorPlace]:
    if not (options.override_tensor or options.cpu_moe or options.n_cpu_moe):
        return []
    devices = [_device_get(i) for i in range(_device_count())]
    types = {_buffer_type_name(t).decode(): t for d in devices if (t := _device_buffer_type(d))}
    places = []
    for pattern, buffer in map(split_override, options.override_tensor):
        if buffer not in types:
            raise LoadError(f"override_tensor: there is no buffer type '{buffer}' here; allowed: {', '.join(types)}")
        places.append(_TensorPlace(pattern.encode(), types[buffer]))
    if options.cpu_moe:
        places.append(_TensorPlace(_EXPERTS_CPU.format(r"\d+").encode(), types["CPU"]))
    places += [_TensorPlace(_EXPERTS_CPU.format(i).encode(), types["CPU"]) for i in range(options.n_cpu_moe or 0)]
    return places


def kv_overrides(texts: Sequence[str]) -> Any:
    """Return an array of llama_model_kv_override, ended by an empty key."""
    array = (llama_cpp.llama_model_kv_override * (len(texts) + 1))()
    for entry, text in zip(array, texts, strict=False):
        key, value = parse_kv(text)
        entry.key = key.encode()
        union: Any = entry.value
        match value:
            case bool():
                entry.tag, union.val_bool = _KV_BOOL, value
            case int():
                entry.tag, union.val_i64 = _KV_INT, value
            case float():
                entry.tag, union.val_f64 = _KV_FLOAT, value
            case str():
                entry.tag, union.val_str = _KV_STR, value.encode()
    return array


def use_numa(options: EngineOptions) -> None:
    """Tell llama.cpp how to use the nodes of the host; it can be told once a process."""
    if options.numa is not None:
        llama_cpp.llama_numa_init(_NUMA[options.numa])


def context_params(options: EngineOptions, kind: str, *, threads: int) -> Any:
    """Return a context's parameters as far as a profile's options say them, for a model of either use."""
    params = llama_cpp.llama_context_default_params()
    params.n_threads = options.threads or threads
    params.n_threads_batch = options.threads_batch or params.n_threads
    params.type_k = CACHE_TYPES[options.cache_type_k or "f16"]
    params.type_v = CACHE_TYPES[options.cache_type_v or "f16"]
    params.flash_attn_type = _FLASH[options.flash or "auto"]
    if options.rope_scaling is not None:
        params.rope_scaling_type = _ROPE_SCALINGS[options.rope_scaling]
    params.rope_freq_base = options.rope_freq_base or 0.0
    params.rope_freq_scale = 1.0 / options.rope_scale if options.rope_scale else options.rope_freq_scale or 0.0
    for name in ("yarn_orig_ctx", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_slow", "yarn_beta_fast"):
        value = getattr(options, name)
        if value is not None:
            setattr(params, name, value)
    params.no_perf = True
    params.kv_unified = True
    params.offload_kqv = params.op_offload = kind != "cpu"
    return params


def generation_params(
    options: EngineOptions, kind: str, *, threads: int, kv_tokens: int, sequences: int, heads: int
) -> Any:
    """Return the parameters of a context that generates."""
    params = context_params(options, kind, threads=threads)
    params.n_ctx = kv_tokens
    params.n_seq_max = params.n_outputs_max = sequences  # llama.cpp takes no fewer outputs
    rows, holds_scores = attention_rows(options, kv_tokens, heads, is_cpu=kind == "cpu")
    params.n_batch, params.n_ubatch = options.batch or BATCH_TOKENS, rows
    if holds_scores:
        params.flash_attn_type = _FLASH["off"]
    params.swa_full = bool(options.swa_full)  # else a layer that looks back at a window holds windows, not contexts
    return params


_SAID = {
    "n_gpu_layers": re.compile(r"offloaded (\d+/\d+) layers to GPU"),
    "load_mode": re.compile(r"\(load_mode = ([\w+]+)\)"),
    "rope_freq_base": re.compile(r"freq_base\s+= ([\d.]+)"),
    "rope_freq_scale": re.compile(r"freq_scale\s+= ([\d.e+-]+)"),
    "rope_scaling": re.compile(r"rope scaling\s+= (\w+)"),
    "cache_type_k": re.compile(r", K \((\w+)\):"),
    "cache_type_v": re.compile(r", V \((\w+)\):"),
    "flash_attn": re.compile(r"flash_attn\s+= (\w+)|Flash Attention (enabled|not supported)", re.IGNORECASE),
}
_OVERRIDDEN = re.compile(r"Using metadata override \(.*?\) '(.+?)' =\s*(.*)")
_PLACED = re.compile(r"tensor (\S+) .* buffer type overridden to (\S+)")
_ILL_TYPED = re.compile(r"Bad metadata override type for key '(.+?)', expected (\w+) but got (\w+)")
_FLASH_WORDS = {"enabled": "on", "disabled": "off", "not supported": "off", "auto": "auto"}


def read_back(context: Any, lines: Sequence[Line]) -> dict[str, str]:
    """Return the options as llama.cpp has them: asked of the context, else read in what it said while loading.

    Raises LoadError where it took no notice of one.
    """
    used = {
        "batch": str(llama_cpp.llama_n_batch(context)),
        "ubatch": str(llama_cpp.llama_n_ubatch(context)),
        "threads": str(llama_cpp.llama_n_threads(context)),
        "threads_batch": str(llama_cpp.llama_n_threads_batch(context)),
    }
    placed: dict[str, int] = {}
    for line in lines:
        ill = _ILL_TYPED.search(line.text)
        if ill:
            raise LoadError(f"override_kv: '{ill[1]}' has the type {ill[2]} in the file, not {ill[3]}")
        for name, pattern in _SAID.items():
            match = pattern.search(line.text)
            if match:
                used[name] = next(g for g in match.groups() if g)
        override = _OVERRIDDEN.search(line.text)
        if override:
            used[f"override_kv {override[1]}"] = override[2]
        place = _PLACED.search(line.text)
        if place:
            placed[place[2]] = placed.get(place[2], 0) + 1
    if "flash_attn" in used:
        used["flash_attn"] = _FLASH_WORDS.get(used["flash_attn"].lower(), used["flash_attn"])
    used |= {f"override_tensor {buffer}": f"{count} tensors" for buffer, count in placed.items()}
    return used
