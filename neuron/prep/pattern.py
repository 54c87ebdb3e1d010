"""Regular expressions of JSON Schema to GBNF, as they look inside a JSON string. Pure."""

import re
import warnings
from re import _constants as c  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from neuron.prep.rules import RuleSet

LENGTH = 1000
MOST = 1000
"""Repetitions; more are as good as any number."""
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_CLASSES = {c.CATEGORY_DIGIT: "0-9", c.CATEGORY_WORD: "a-zA-Z0-9_", c.CATEGORY_SPACE: " "}


class UnsupportedPattern(Exception):
    """The text says why."""


def translate(pattern: Any, rules: RuleSet) -> str:
    """Return the body of a rule for texts that match. Raises UnsupportedPattern."""
    if not isinstance(pattern, str) or len(pattern) > LENGTH:
        raise UnsupportedPattern(f"must be a regular expression of at most {LENGTH} characters")
    if not (pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith("\\$")):
        raise UnsupportedPattern("must begin with ^ and end with $")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parser.parse(pattern[1:-1])
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedPattern(f"is no regular expression: {error}") from None
    return _sequence(tree, rules) or '""'


def _sequence(tree: Any, rules: RuleSet) -> str:
    return " ".join(_item(operator, value, rules) for operator, value in tree)


def _item(operator: Any, value: Any, rules: RuleSet) -> str:
    if operator is c.LITERAL:
        return _terminal(chr(value))
    if operator is c.NOT_LITERAL:
        return _set(True, _character(chr(value)))
    if operator is c.ANY:
        return rules.use("char")
    if operator is c.IN:
        return _class(value)
    if operator is c.SUBPATTERN:
        return f"( {_sequence(value[3], rules) or _EMPTY} )"
    if operator is c.BRANCH:
        return f"( {' | '.join(_sequence(part, rules) or _EMPTY for part in value[1])} )"
    if operator in (c.MAX_REPEAT, c.MIN_REPEAT):
        least, most, body = value
        if least > MOST:
            raise UnsupportedPattern(f"repeats more than {MOST} times")
        upper = "" if most is c.MAXREPEAT or most > MOST else most
        return f"( {_sequence(body, rules) or _EMPTY} ){{{least},{upper}}}"
    raise UnsupportedPattern(f"uses what a grammar cannot express ({str(operator).lower()})")


_EMPTY = '""'


def _terminal(character: str) -> str:
    escaped = _ESCAPED.get(character, character)
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _character(character: str) -> str:
    """Return a character as it stands in a class of a grammar."""
    if character in "\\]-^[":
        return f"\\x{ord(character):02x}"
    return f"\\x{ord(character):02x}" if ord(character) < 32 else character


def _class(members: list[Any]) -> str:
    is_negated = bool(members) and members[0][0] is c.NEGATE
    inside, escapes = "", []
    for operator, value in members[1:] if is_negated else members:
        if operator is c.LITERAL:
            character = chr(value)
            if character in _ESCAPED and not is_negated:
                escapes.append(_terminal(character))
            else:
                inside += _character(character)
        elif operator is c.RANGE:
            low, high = value
            if not is_negated and any(low <= ord(e) <= high for e in _ESCAPED):
                raise UnsupportedPattern("has a range that takes in quotation marks, backslashes or control characters")
            inside += f"{_character(chr(low))}-{_character(chr(high))}"
        elif operator is c.CATEGORY and value in _CLASSES:
            inside += _CLASSES[value]
        else:
            raise UnsupportedPattern("uses a class that a grammar cannot express")
    if is_negated:
        return _set(True, inside)
    parts = [_set(False, inside)] if inside else []
    parts += escapes
    return parts[0] if len(parts) == 1 else f"( {' | '.join(parts)} )"


def _set(is_negated: bool, inside: str) -> str:
    if not is_negated:
        return f"[{inside}]"
    # Whatever else is left out: what JSON wants escaped.
    return f'[^{inside}"\\\\\\x00-\\x1f\\x7f]'
