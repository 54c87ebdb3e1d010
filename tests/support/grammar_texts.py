"""Random texts that a grammar (GBNF, in the notation that this project writes) allows."""

import re
from random import Random

POOL = "ab zZ09_-+.,:;=|<>/\\\"'`{}[]()#!?\n\t éß日🙂"
"""Of a class that names what it leaves out: characters that matter to some format, and some that do not."""
COPIES = 3
"""Of what may be repeated any number of times, on top of the least."""
_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-zA-Z][a-zA-Z0-9-]*)'
    r"|(?P<count>\{\d+,?\d*\})|(?P<mark>[()|*+?]))"
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {"n": "\n", "t": "\t", "r": "\r"}

Node = tuple[str, object]
"""text, set, name, or any (alternatives: lists of (node, least, most))."""


class Texts:
    """Draws from one grammar."""

    def __init__(self, gbnf: str, random: Random) -> None:
        self._random = random
        self._rules: dict[str, Node] = {}
        for line in gbnf.splitlines():
            name, _, body = line.partition(" ::= ")
            tokens = [(m.lastgroup or "", m[0].strip(" ")) for m in _tokens(body)]
            self._rules[name] = ("any", self._alternatives(tokens))
            assert not tokens, (name, tokens)
        self._heights = self._measure()

    def draw(self, depth: int = 24) -> str:
        """Return a text; beyond `depth` rules the shortest way to an end is taken."""
        return self._write(("name", "root"), depth)

    def _alternatives(self, tokens: list[tuple[str, str]]) -> list[list[tuple[Node, int, int]]]:
        found: list[list[tuple[Node, int, int]]] = [[]]
        while tokens and tokens[0][1] != ")":
            kind, text = tokens.pop(0)
            if text == "|" and kind == "mark":
                found.append([])
                continue
            node: Node = (kind, text)
            if kind == "mark":
                assert text == "(", text
                node = ("any", self._alternatives(tokens))
                assert tokens.pop(0)[1] == ")"
            elif kind == "text":
                node = ("text", _unescape(text[1:-1]))
            elif kind == "set":
                node = ("set", _members(text))
            least, most = 1, 1
            if tokens and (tokens[0][0] == "count" or tokens[0][1] in ("*", "+", "?")):
                least, most = _bounds(tokens.pop(0)[1])
            found[-1].append((node, least, most))
        return found

    def _measure(self) -> dict[str, int]:
        """Return how many rules deep each rule is at least."""
        heights = dict.fromkeys(self._rules, 10**6)
        for _ in range(len(self._rules)):
            before = dict(heights)
            for name, node in self._rules.items():
                heights[name] = 1 + self._height(node, heights)
            if heights == before:
                break
        return heights

    def _height(self, node: Node, heights: dict[str, int]) -> int:
        kind, value = node
        if kind == "name":
            return heights[str(value)]
        if kind != "any":
            return 0
        assert isinstance(value, list)
        return min(max((self._height(n, heights) for n, least, _ in items if least), default=0) for items in value)

    def _write(self, node: Node, depth: int) -> str:
        kind, value = node
        if kind == "text":
            return str(value)
        if kind == "set":
            return self._random.choice(str(value))
        if kind == "name":
            return self._write(self._rules[str(value)], depth - 1)
        assert isinstance(value, list)
        choices = value
        if depth <= 0:
            lowest = [max((self._height(n, self._heights) for n, least, _ in items if least), default=0)
                      for items in value]  # fmt: skip
            choices = [items for items, height in zip(value, lowest, strict=True) if height == min(lowest)]
        out = []
        for part, least, most in self._random.choice(choices):
            more = 0 if depth <= 0 else self._random.randint(0, min(most - least, COPIES))
            out += [self._write(part, depth) for _ in range(least + more)]
        return "".join(out)


def _tokens(body: str) -> "list[re.Match[str]]":
    found, position = [], 0
    body = body.strip()
    while position < len(body):
        match = _TOKEN.match(body, position)
        assert match is not None, body[position : position + 40]
        found.append(match)
        position = match.end()
    return found


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _NAMED.get(m[2], m[2]), text)


def _members(text: str) -> str:
    inner = text[1:-1]
    is_negated = inner.startswith("^")
    pattern = re.compile(f"[{'^' if is_negated else ''}{_as_class(inner.removeprefix('^'))}]")
    pool = POOL if is_negated else "".join(map(chr, range(32, 127))) + POOL
    found = "".join(c for c in pool if pattern.match(c))
    assert found, text
    return found


def _as_class(inner: str) -> str:
    """Return a class of GBNF as one of Python's regular expressions."""
    return _ESCAPE.sub(lambda m: m[0] if m[1] else re.escape(_NAMED.get(m[2], m[2])), inner).replace("[", "\\[")


def _bounds(mark: str) -> tuple[int, int]:
    if mark in ("*", "+", "?"):
        return (mark == "+"), (1 if mark == "?" else 10**6)
    least, comma, most = mark[1:-1].partition(",")
    return int(least), int(most) if most else 10**6 if comma else int(least)
