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
    """Return any text that does not contain `marker`."""
    steps = []
    for index, character in enumerate(marker):
        other = f"[^{_CLASS_ESCAPES.get(character, character)}]"
        steps.append(f"{literal(marker[:index])} {other}" if index else other)
    return either(steps) + "*"


def repeat(call: str, separator: str, *, is_parallel: bool) -> str:
    """Return one call, or several with something between them."""
    return f"{call} ( {separator} {call} ){{0,{MORE_CALLS}}}" if is_parallel else call
