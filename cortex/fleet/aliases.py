"""Other names of models: exact ones, patterns, and what a client's own suffix adds to a name. Pure."""

import re
from collections.abc import Collection, Mapping

from common.catalogue import Alias

LONG_CONTEXT = "[1m]"
"""Claude Code's mark of a context of a million tokens; a name is the same with it and without."""
Known = Mapping[str, str | Alias]


def find(name: str, ids: Collection[str], aliases: Known) -> str | Alias | None:
    """Return what a name stands for, None if nobody knows it.

    1. The id of a model.
    2. An alias of just this name.
    3. The same without the suffix that clients add for long contexts.
    4. The longest pattern that matches; of equally long ones the first by the alphabet.
    """
    names = [name, name.removesuffix(LONG_CONTEXT)] if name.endswith(LONG_CONTEXT) else [name]
    for candidate in names:
        if candidate in ids:
            return candidate
        if candidate in aliases:
            return aliases[candidate]
    matching = [p for p in aliases if is_pattern(p) and any(_matches(p, n) for n in names)]
    return aliases[min(matching, key=lambda p: (-len(p), p))] if matching else None


def choose(target: str | Alias, resident: Collection[str]) -> str:
    """Return the model that is used now: the second choice while the first one is not resident."""
    if isinstance(target, str):
        return target
    return target.other if target.other is not None and target.model not in resident else target.model


def is_pattern(name: str) -> bool:
    """Say whether an alias stands for many names."""
    return "*" in name


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None
