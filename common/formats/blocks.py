"""Reads calls that stand in blocks between markers, and everything else as text."""

import re

from common.formats.contract import MORE, Block, Content, Delta, Syntax, Tools

_SHORT = 64
"""Characters of a block in which it is tried with each push: most texts that are no call show it at once."""


class BlockParser:
    """Holds a block back until it is complete or can never be; other text only while it may become a marker."""

    def __init__(self, syntax: Syntax, tools: Tools) -> None:
        self._syntax = syntax
        self._tools = tools
        self._markers = (*syntax.openers, *syntax.fillers)
        self._starts = re.compile("[" + re.escape("".join({m[0] for m in self._markers})) + "]")
        self._find = re.compile("|".join(re.escape(m) for m in sorted(self._markers, key=len, reverse=True)))
        self._held = ""
        self._in_block = False
        self._tried = 0
        """Length of the block when it was last tried."""
        self._is_open = True
        """Whether a block may begin here, where one can only begin an answer."""
        self._follows_call = False

    @property
    def is_thinking(self) -> bool:
        """Whether what was read so far ends within reasoning."""
        return False

    def push(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain by now."""
        if not text:
            return []
        if not self._held and not self._follows_call and not text[-1].isspace() and not self._starts.search(text):
            self._is_open = False
            return [Content(text)]
        self._held += text
        return self._drain(is_final=False)

    def finish(self) -> list[Delta]:
        """Return the rest: no more text comes."""
        return self._drain(is_final=True)

    def _drain(self, *, is_final: bool) -> list[Delta]:
        out: list[Delta] = []
        while self._held:
            goes_on = self._read_block(out, is_final) if self._in_block else self._read_text(out, is_final)
            if not goes_on:
                break
        return out

    def _read_block(self, out: list[Delta], is_final: bool) -> bool:
        if not is_final and not self._is_worth_a_try():
            return False
        self._tried = len(self._held)
        block = self._syntax.read(self._held, self._tools, is_final=is_final)
        if block is MORE and not is_final:
            return False
        self._in_block = False
        if isinstance(block, Block):
            out += block.calls
            self._held = self._held[block.end :]
            self._is_open = self._follows_call = True
            return True
        opener = next(o for o in self._syntax.openers if self._held.startswith(o))
        self._show(out, len(opener))
        return True

    def _is_worth_a_try(self) -> bool:
        if len(self._held) <= _SHORT:
            return True
        return any(self._held.find(c, max(0, self._tried - len(c) + 1)) >= 0 for c in self._syntax.closers)

    def _read_text(self, out: list[Delta], is_final: bool) -> bool:
        match = self._next_marker()
        if match is not None:
            before = self._held[: match.start()]
            if match[0] in self._syntax.fillers:
                self._take(out, before)
                self._held = self._held[match.end() :]
                return True
            self._take(out, before.rstrip())
            self._held = self._held[match.start() :]
            self._in_block, self._tried = True, 0
            return True
        if is_final:
            # What follows a call is shown only if it is more than space.
            self._show(out, 0 if self._follows_call and self._held.isspace() else len(self._held))
            self._held = ""
            return False
        kept = self._held[: len(self._held) - self._longest_beginning()].rstrip()
        self._show(out, len(kept))
        return False

    def _next_marker(self) -> "re.Match[str] | None":
        for match in self._find.finditer(self._held):
            if not self._syntax.is_first or match[0] in self._syntax.fillers:
                return match
            if self._is_open and not self._held[: match.start()].strip():
                return match
        return None

    def _longest_beginning(self) -> int:
        """Return the length of the longest end of the held text that is the beginning of a marker."""
        longest = max(len(m) for m in self._markers) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(m.startswith(tail) for m in self._markers):
                return length
        return 0

    def _show(self, out: list[Delta], length: int) -> None:
        self._take(out, self._held[:length])
        self._held = self._held[length:]

    def _take(self, out: list[Delta], text: str) -> None:
        if text:
            out.append(Content(text))
            self._follows_call = False
            if not text.isspace():
                self._is_open = False
