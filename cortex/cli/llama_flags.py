"""llama-server's options as keys of a profile's `engine` and `sampling`. Pure.

Names and values are those of llama.cpp's common/arg.cpp, and those that it had before and that files still have
(--no-mmap, --mlock).
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import structs

from common.engine_options import EngineOptions, SamplingDefaults, faults

Options = list[tuple[str, str]]

_SHORT = {
    "m": "model", "c": "ctx-size", "np": "parallel", "a": "alias", "hf": "hf-repo", "hfr": "hf-repo", "hff": "hf-file",
    "ngl": "gpu-layers", "n-gpu-layers": "gpu-layers", "fa": "flash-attn", "ctk": "cache-type-k", "ctv": "cache-type-v",
    "t": "threads", "tb": "threads-batch", "b": "batch-size", "ub": "ubatch-size", "ts": "tensor-split",
    "sm": "split-mode", "mg": "main-gpu", "ot": "override-tensor", "mm": "mmproj", "md": "model-draft",
    "cmoe": "cpu-moe", "ncmoe": "n-cpu-moe", "lm": "load-mode", "kvu": "kv-unified", "temp": "temperature",
    "typical": "typical-p", "batch": "batch-size", "ubatch": "ubatch-size", "n-parallel": "parallel",
    "rope-scaling-type": "rope-scaling", "dio": "direct-io",
}  # fmt: skip
"""To the name used here, from the short ones and from those of the LLAMA_ARG_ variables."""

_ENGINE = {
    "gpu-layers": "n_gpu_layers", "batch-size": "batch", "ubatch-size": "ubatch",
    **{
        name: name.replace("-", "_")
        for name in (
            "n-cpu-moe", "cpu-moe", "override-tensor", "tensor-split", "split-mode", "main-gpu", "flash-attn",
            "cache-type-k", "cache-type-v", "threads", "threads-batch", "rope-scaling", "rope-scale", "rope-freq-base",
            "rope-freq-scale", "yarn-orig-ctx", "yarn-ext-factor", "yarn-attn-factor", "yarn-beta-slow",
            "yarn-beta-fast", "swa-full", "load-mode", "mlock", "numa", "override-kv", "chat-template-file",
        )
    },
}  # fmt: skip
_SAMPLING = {"mirostat-lr": "mirostat_eta", "mirostat-ent": "mirostat_tau"} | {
    f.name.replace("_", "-"): f.name for f in structs.fields(SamplingDefaults) if "mirostat_" not in f.name
}
_LISTS = frozenset({"override-tensor", "override-kv", "tensor-split"})
"""Values with commas between them; the option may also be given several times."""
_LOAD_MODES: dict[str, dict[str, Any]] = {
    "auto": {}, "none": {"load_mode": "read"}, "mmap": {"load_mode": "mmap"}, "dio": {"load_mode": "direct_io"},
    "mlock": {"load_mode": "read", "mlock": True}, "mmap+mlock": {"load_mode": "mmap", "mlock": True},
}  # fmt: skip
_FLAGS: dict[str, dict[str, Any]] = {
    "cpu-moe": {"cpu_moe": True}, "swa-full": {"swa_full": True}, "mlock": {"mlock": True}, "flash-attn": {
        "flash_attn": "on"}, "no-mmap": {"load_mode": "read"}, "direct-io": {"load_mode": "direct_io"},
    "numa": {"numa": "distribute"}, "mmap": {},
}  # fmt: skip
"""What an option without a value means."""
_ON, _OFF = frozenset({"true", "on", "1", "enabled"}), frozenset({"false", "off", "0", "disabled"})


def long_name(name: str) -> str:
    """Return an option's one name: without dashes, whatever its spelling; a LLAMA_ARG_ variable's too."""
    if name.startswith("LLAMA_ARG_"):
        name = name.removeprefix("LLAMA_ARG_").lower().replace("_", "-")
    name = name.lstrip("-")
    return _SHORT.get(name, name)


def gathered(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the options with one value each: the last, or all of a list."""
    given: dict[str, str] = {}
    for name, value in options:
        given[name] = f"{given[name]},{value}" if name in _LISTS and name in given else value
    return given


def translate(given: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Take what has an equivalent out of the options; return keys of `engine`, of `sampling`, and what was wrong."""
    engine: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    notes: list[str] = []
    for option in [o for o in given if o in _ENGINE or o in _FLAGS]:
        value = given.pop(option).strip()
        found = _engine_keys(option, value)
        problem = found if isinstance(found, str) else _check(EngineOptions, found)
        if problem is None and not isinstance(found, str):
            engine |= found
        else:
            notes.append(f"{option} {value}".rstrip() + f": {problem}")
    for option in [o for o in given if o in _SAMPLING]:
        value = given.pop(option).strip()
        keys = {_SAMPLING[option]: _number(value)}
        problem = _check(SamplingDefaults, keys)
        if problem is None:
            sampling |= keys
        else:
            notes.append(f"{option} {value}".rstrip() + f": {problem}")
    return engine, sampling, notes


def without_faults(engine: dict[str, Any], parallel: int) -> list[str]:
    """Take out of the keys of `engine` what does not go together; return what was wrong."""
    notes = []
    while found := next(faults(msgspec.convert(engine, EngineOptions), parallel), None):
        key = found[0].partition("[")[0]
        del engine[key]
        notes.append(f"{key} {found[1]}")
    return notes


def _engine_keys(option: str, value: str) -> dict[str, Any] | str:
    """Return the keys that an option sets, or why it sets none."""
    if option in _FLAGS and (not value or value.lower() in _ON):
        return _FLAGS[option]
    if option in _FLAGS and option != "flash-attn" and value.lower() in _OFF:
        return {"load_mode": "read"} if option == "mmap" else {}
    if option == "load-mode":
        return _LOAD_MODES.get(value, f"allowed: {', '.join(_LOAD_MODES)}")
    if option not in _ENGINE:
        return "takes no value"
    key = _ENGINE[option]
    if option in _LISTS:
        parts = [p for p in value.split(",") if p]
        return {key: [_number(p) for p in parts] if option == "tensor-split" else parts}
    if option == "gpu-layers" and value.startswith("-"):
        return {key: "auto" if value == "-1" else "all"}
    if option == "flash-attn":
        value = "off" if value.lower() in _OFF else value
    return {key: _number(value)}


def _number(value: str) -> int | float | str:
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"-?(\d+\.\d*|\.?\d+)(e-?\d+)?", value, re.IGNORECASE) else value


def _check(kind: type[EngineOptions | SamplingDefaults], keys: dict[str, Any]) -> str | None:
    """Return why a profile takes no such values; None if it does."""
    try:
        msgspec.convert(keys, kind)
    except msgspec.ValidationError as error:
        return f"is not taken by a profile ({str(error).partition(' - ')[0]})"
    return None
