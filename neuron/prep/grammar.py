"""Bounds of GBNF grammars, before llama.cpp sees any: it overflows its stack, or aborts, on some that are nested or
repeated beyond reason. Pure.

A grammar is read once, by llama.cpp's own syntax (src/llama-grammar.cpp), and what it would become is counted.
"""

import re
from dataclasses import dataclass, field

from common.errors import HelexaError

BYTES = 65_536
NESTING = 64
RULES = 4_000
REPETITIONS = 2_000
"""Of one thing, what is inside it counted as well: llama.cpp's own limit."""
ELEMENTS = 100_000
"""Of all rules after llama.cpp has written repetitions out."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_TEXT = re.compile(r'"((?:[^"\\\n\r]|\\.)*)"')
_CLASS = re.compile(r"\[((?:[^\]\\]|\\.)*)\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr\\\"\[\]])")
_COUNT = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")


class BadGrammar(HelexaError):
    """The grammar cannot be used; the text says why, and in which line."""


@dataclass(slots=True)
class _Rule:
    """What one name stands for."""

    alternatives: list[list["_Item"]] = field(default_factory=list)
    elements: int = 0


@dataclass(slots=True)
class _Item:
    """A terminal, a reference (`name`) or a group, and how often."""

    name: str | None = None
    group: list[list["_Item"]] | None = None
    is_empty_text: bool = False
    least: int = 1
    most: int | None = 1
    weight: int = 1
    """Elements it becomes."""
    rules: int = 1
    """Rules a repetition of it would copy."""


def lint(text: str) -> None:
    """Check a grammar. Raises BadGrammar."""
    size = len(text.encode())
    if size > BYTES:
        raise BadGrammar(f"it has {size} bytes; at most {BYTES} are allowed")
    rules = _Reader(text).read()
    if "root" not in rules:
        raise BadGrammar("it has no rule named root")
    _check_names(rules)
    total = sum(rule.elements for rule in rules.values())
    if total > ELEMENTS:
        raise BadGrammar(f"its repetitions amount to {total} elements; at most {ELEMENTS} are allowed")
    _check_loops(rules)


class _Reader:
    """Reads one grammar from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> dict[str, _Rule]:
        if "\0" in self._text:
            raise BadGrammar("it contains a zero byte")
        rules: dict[str, _Rule] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            match = _NAME.match(self._text, self._at)
            if match is None:
                raise self._error("a rule must begin with its name")
            name, self._at = match[0], match.end()
            self._skip(lines=False)
            if not self._text.startswith("::=", self._at):
                raise self._error(f"::= is missing after {name}")
            self._at += 3
            self._skip(lines=True)
            alternatives = self._alternatives(0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error(f"unexpected {self._text[self._at]!r}")
            self._skip(lines=True)
            rules[name] = _Rule(alternatives, sum(i.weight for a in alternatives for i in a) + len(alternatives))
            if len(rules) > RULES:
                raise BadGrammar(f"it has more than {RULES} rules")
        return rules

    def _alternatives(self, depth: int) -> list[list[_Item]]:
        if depth > NESTING:
            raise self._error(f"parentheses are nested more than {NESTING} deep")
        alternatives = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip(lines=True)
            alternatives.append(self._sequence(depth))
        return alternatives

    def _sequence(self, depth: int) -> list[_Item]:
        items: list[_Item] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in "*+?{":
                if not items:
                    raise self._error(f"nothing stands before {character}")
                items[-1] = self._repeat(items[-1], *self._count(character))
            elif character in "|)\r\n":
                break
            else:
                items.append(self._item(character, depth))
            self._skip(lines=depth > 0)
        return items

    def _item(self, character: str, depth: int) -> _Item:
        if character == "(":
            self._at += 1
            self._skip(lines=True)
            group = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._error(") is missing")
            self._at += 1
            inner = [i for alternative in group for i in alternative]
            return _Item(group=group, weight=sum(i.weight for i in inner) + len(group) + 1,
                         rules=1 + sum(i.rules for i in inner if i.group or i.most != 1))  # fmt: skip
        if character == ".":
            self._at += 1
            return _Item()
        name = _NAME.match(self._text, self._at)
        if name is not None:
            self._at = name.end()
            return _Item(name=name[0])
        pattern = {'"': _TEXT, "[": _CLASS}.get(character)
        if pattern is None:
            raise self._error(f"unexpected {character!r}")
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._error(f"{character} is never closed")
        if "\\" in _ESCAPE.sub("", match[1]):
            raise self._error("unknown escape")
        self._at = match.end()
        if character == "[" and match[1] in ("", "^"):
            raise self._error("an empty class")
        length = len(_ESCAPE.sub("x", match[1]))
        return _Item(weight=max(length, 1), is_empty_text=length == 0)

    def _count(self, character: str) -> tuple[int, int | None]:
        if character != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        match = _COUNT.match(self._text, self._at)
        if match is None or len(match[1]) > 9 or len(match[3]) > 9:
            raise self._error("{ must be followed by a count, as in {2}, {2,} or {2,5}")
        self._at = match.end()
        least = int(match[1])
        most = int(match[3]) if match[3] else None if match[2] else least
        if most is not None and (most < least or most == 0):
            raise self._error("a repetition's second number must be at least 1 and its first")
        return least, most

    def _repeat(self, item: _Item, least: int, most: int | None) -> _Item:
        times = max(least, 1) if most is None else most
        rules = item.rules * times
        if times > REPETITIONS or rules > REPETITIONS:
            raise self._error(f"repetitions amount to more than {REPETITIONS}")
        if item.least != 1 or item.most != 1:
            item = _Item(group=[[item]], weight=item.weight, rules=item.rules)
        return _Item(item.name, item.group, item.is_empty_text, least, most, item.weight * times + 2 * times, rules)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, *, lines: bool) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _error(self, text: str) -> BadGrammar:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        return BadGrammar(f"line {line}, column {column}: {text}")


def _check_names(rules: dict[str, _Rule]) -> None:
    for name, rule in rules.items():
        for item in _walk(rule.alternatives):
            if item.name is not None and item.name not in rules:
                raise BadGrammar(f"rule {name} uses {item.name}, which is not defined")


def _walk(alternatives: list[list[_Item]]) -> list[_Item]:
    found: list[_Item] = []
    todo = [item for alternative in alternatives for item in alternative]
    while todo:
        item = todo.pop()
        found.append(item)
        if item.group is not None:
            todo += [inner for alternative in item.group for inner in alternative]
    return found


def _check_loops(rules: dict[str, _Rule]) -> None:
    """Refuse what can go on without reading anything: a rule that begins with itself, a repetition of nothing."""
    empty: set[str] = set()

    def can_be_empty(item: _Item) -> bool:
        if item.least == 0 or item.is_empty_text or item.name in empty:
            return True
        return item.group is not None and any(all(map(can_be_empty, a)) for a in item.group)

    grows = True
    while grows:
        found = {
            n for n, r in rules.items() if n not in empty and any(all(map(can_be_empty, a)) for a in r.alternatives)
        }
        empty |= found
        grows = bool(found)
    begins: dict[str, set[str]] = {}
    for name, rule in rules.items():
        begins[name] = set()
        for item in _walk(rule.alternatives):
            inner = _Item(item.name, item.group, item.is_empty_text)
            if item.most is None and can_be_empty(inner):
                raise BadGrammar(f"rule {name} repeats without end what may be empty")
        todo = list(rule.alternatives)
        while todo:
            for item in todo.pop():
                if item.name is not None:
                    begins[name].add(item.name)
                if item.group is not None:
                    todo += item.group
                if not can_be_empty(item):
                    break
    _check_left_recursion(begins)


def _check_left_recursion(begins: dict[str, set[str]]) -> None:
    done: set[str] = set()
    for start in begins:
        path: list[tuple[str, list[str]]] = [(start, sorted(begins[start]))] if start not in done else []
        open_names = {start}
        while path:
            name, nexts = path[-1]
            if not nexts:
                done.add(name)
                open_names.discard(name)
                path.pop()
                continue
            following = nexts.pop()
            if following in open_names:
                raise BadGrammar(f"rule {following} begins with itself; put something before it, or use *")
            if following not in done:
                open_names.add(following)
                path.append((following, sorted(begins[following])))
