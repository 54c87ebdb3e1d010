"""Names of GGUF files: shards of one model, quantisations, projectors. Pure."""

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q\d(?:_\d)?(?:_[A-Z]+)*|TQ\d_\d|BF16|FP?16|F32|MXFP4(?:_[A-Z]+)*))(?=[-./]|$)",
    re.IGNORECASE,
)
PREFERRED = ("Q4_K_M", "Q4_K_XL", "Q4_0", "MXFP4", "Q8_0")
"""What `hf:org/repo` without a quantisation means: the first of these that the repository has."""


class Shard(NamedTuple):
    """A file of a model that is split into several."""

    stem: str
    part: int
    parts: int


def split(name: str) -> Shard | None:
    """Return which part of which model a file is by its name; None: a whole model."""
    match = _SHARD.fullmatch(name)
    return Shard(match["stem"], int(match["part"]), int(match["parts"])) if match else None


def part_name(shard: Shard, part: int) -> str:
    """Return the name of another part of the same model."""
    return f"{shard.stem}-{part:05}-of-{shard.parts:05}.gguf"


def quant_of(name: str) -> str | None:
    """Return the quantisation that a path's names tell, in capitals."""
    found = [m["quant"].upper() for m in _QUANT.finditer(name.removesuffix(".gguf"))]
    return found[-1] if found else None


def is_gguf(name: str) -> bool:
    """Say whether it is the name of a GGUF file."""
    return name.lower().endswith(".gguf")


def is_model(name: str) -> bool:
    """Say whether a GGUF file is a model by its name, and no projector, importance matrix or vocabulary."""
    stem = PurePath(name).name.lower()
    return is_gguf(name) and "mmproj" not in stem and "imatrix" not in stem and not stem.startswith("ggml-vocab-")


def group(names: Iterable[str]) -> dict[str, list[str]]:
    """Put the parts of a model together: first part or whole file → all its files, in order.

    Parts that are not among the names are left out; `missing_parts` tells them.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePath(name)
        shard = split(path.name)
        first = name if shard is None else str(path.with_name(part_name(shard, 1)))
        groups.setdefault(first, []).append(name)
    return groups


def missing_parts(first: str, files: list[str]) -> list[str]:
    """Return the names of the parts that a model lacks."""
    shard = split(PurePath(files[0]).name)
    if shard is None:
        return []
    here = {PurePath(f).name for f in files}
    return [name for i in range(1, shard.parts + 1) if (name := part_name(shard, i)) not in here]
