"""Regular expressions of JSON Schema to GBNF, as they look inside a JSON string, or between tags. Pure."""

import re
import warnings
from re import _constants as c  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from neuron.prep.rules import RuleSet, literal

LENGTH = 1000
MOST = 1000
"""Repetitions; more are as good as any number."""
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_TAG = "<"
_CLASSES = {c.CATEGORY_DIGIT: "0-9", c.CATEGORY_WORD: "a-zA-Z0-9_", c.CATEGORY_SPACE: " "}


class UnsupportedPattern(Exception):
    """The text says why."""


def translate(pattern: Any, rules: RuleSet, *, is_bare: bool = False) -> str:
    """Return the body of a rule for texts that match. Raises UnsupportedPattern.

    `is_bare`: they stand between tags, where nothing is escaped, and what could begin a tag is left out.
    """
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
    return _Translation(rules, is_bare).sequence(tree)


class _Translation:
    def __init__(self, rules: RuleSet, is_bare: bool) -> None:
        self._rules = rules
        self._is_bare = is_bare

    def sequence(self, tree: Any) -> str:
        return " ".join(self._item(operator, value) for operator, value in tree) or '""'

    def _item(self, operator: Any, value: Any) -> str:
        if operator is c.LITERAL:
            return self._terminal(chr(value))
        if operator is c.NOT_LITERAL:
            return self._all_but(_character(chr(value)))
        if operator is c.ANY:
            return self._rules.use("bare-inline" if self._is_bare else "inline")
        if operator is c.IN:
            return self._class(value)
        if operator is c.SUBPATTERN:
            return f"( {self.sequence(value[3])} )"
        if operator is c.BRANCH:
            return f"( {' | '.join(self.sequence(part) for part in value[1])} )"
        if operator in (c.MAX_REPEAT, c.MIN_REPEAT):
            least, most, body = value
            if least > MOST:
                raise UnsupportedPattern(f"repeats more than {MOST} times")
            upper = "" if most is c.MAXREPEAT or most > MOST else most
            return f"( {self.sequence(body)} ){{{least},{upper}}}"
        raise UnsupportedPattern(f"uses what a grammar cannot express ({str(operator).lower()})")

    def _terminal(self, character: str) -> str:
        return literal(character if self._is_bare else _ESCAPED.get(character, character))

    def _class(self, members: list[Any]) -> str:
        is_negated = bool(members) and members[0][0] is c.NEGATE
        inside, escapes = "", []
        for operator, value in members[1:] if is_negated else members:
            if operator is c.LITERAL:
                character = chr(value)
                if not is_negated and character in (_TAG if self._is_bare else _ESCAPED):
                    escapes.append(self._terminal(character))
                else:
                    inside += _character(character)
            elif operator is c.RANGE:
                inside += self._range(*value, is_negated=is_negated)
            elif operator is c.CATEGORY and value in _CLASSES:
                inside += _CLASSES[value]
            else:
                raise UnsupportedPattern("uses a class that a grammar cannot express")
        if is_negated:
            return self._all_but(inside)
        parts = [f"[{inside}]"] if inside else []
        if not (self._is_bare and inside):
            parts += escapes
        return parts[0] if len(parts) == 1 else f"( {' | '.join(parts)} )"

    def _range(self, low: int, high: int, *, is_negated: bool) -> str:
        if is_negated:
            return _span(low, high)
        if self._is_bare:
            at = ord(_TAG)
            return (
                _span(low, min(high, at - 1)) + _span(max(low, at + 1), high) if low <= at <= high else _span(low, high)
            )
        if any(low <= ord(e) <= high for e in _ESCAPED):
            raise UnsupportedPattern("has a range that takes in quotation marks, backslashes or control characters")
        return _span(low, high)

    def _all_but(self, inside: str) -> str:
        """Return a class of all other characters; what JSON wants escaped, or begins a tag, is left out too."""
        return f"[^{inside}{_TAG}\\x00-\\x08\\x0b-\\x1f\\x7f]" if self._is_bare else f'[^{inside}"\\\\\\x00-\\x1f\\x7f]'


def _span(low: int, high: int) -> str:
    return f"{_character(chr(low))}-{_character(chr(high))}" if low <= high else ""


def _character(character: str) -> str:
    """Return a character as it stands in a class of a grammar."""
    if character in "\\]-^[" or ord(character) < 32:
        return f"\\x{ord(character):02x}"
    return character
