"""Pieces of grammars in llama.cpp's notation (GBNF)."""

import re
from collections.abc import Iterable

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CLASS_ESCAPES = {**_ESCAPES, "]": "\\]", "[": "\\[", "^": "\\^", "-": "\\-"}

MORE_CALLS = 15
"""After the first of one answer; a weak model would else go on until its limit."""
SPACE = "[ \\t\\n]?"
"""At most one: a model that may write any number of them may never stop."""


def literal(text: str) -> str:
    """Return a terminal for exactly this text."""
    return '"' + "".join(_ESCAPES.get(c, c) for c in text) + '"'


def rule_name(text: str) -> str:
    """Return a name for a rule made from any text."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", text).strip("-").lower() or "x"


def either(bodies: Iterable[str]) -> str:
    """Return an alternative."""
    return "( " + " | ".join(bodies) + " )"


def until(marker: str) -> str:
    """Return any text that does not contain `marker`, nor ends with a beginning of it.

    The marker's first character must not come again in it: then a beginning of the marker is followed by what does
    not continue it, or by another beginning.
    """
    first, rest = marker[0], marker[1:]
    assert first not in rest, marker
    begun = [literal(marker[:n]) for n in range(1, len(marker))]
    other = [f"[^{_in_class(c)}{_in_class(first)}]" for c in rest]
    broken = [f"{b} {o}" for b, o in zip(begun, other, strict=True)]
    return f"( [^{_in_class(first)}] | {either(begun)}* {either(broken)} )*"


def _in_class(character: str) -> str:
    return _CLASS_ESCAPES.get(character, character)


def repeat(call: str, separator: str, *, is_parallel: bool) -> str:
    """Return one call, or several with something between them."""
    return f"{call} ( {separator} {call} ){{0,{MORE_CALLS}}}" if is_parallel else call
