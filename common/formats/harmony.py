"""gpt-oss: messages on channels; `analysis` is reasoning, `final` the answer, one with a recipient a call."""

import re

from common.formats.contract import Call, Content, Delta, Parser, Reasoning, Rules, Syntax, Tools
from common.formats.gbnf import either, literal, rule_name, until
from common.formats.json_text import read_arguments

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_HEADS = ("<|channel|>", "<|start|>", " to=", "to=")
_ANALYSIS = f'( "<|channel|>analysis<|message|>" {until("<|end|>")} "<|end|><|start|>assistant" )?'
"""In a grammar: reasoning, if the model wants to."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<channel>\w+)")
_RECIPIENT = re.compile(r"to=(?:functions\.)?(?P<name>[^\s<]+)")
_END = re.compile("|".join(re.escape(e) for e in _ENDS))


class HarmonyParser:
    """Implements Parser. Headers are dropped, unless they never become messages."""

    def __init__(self, tools: Tools) -> None:
        self._held = ""
        self._state = "between"
        self._header = ""

    @property
    def is_thinking(self) -> bool:
        """Whether what was read so far ends within reasoning."""
        return self._state == "reasoning"

    def push(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain by now."""
        self._held += text
        return self._drain(is_final=False)

    def finish(self) -> list[Delta]:
        """Return the rest. A call usually ends here: the token after it ends the answer."""
        return self._drain(is_final=True)

    def _drain(self, *, is_final: bool) -> list[Delta]:
        out: list[Delta] = []
        while self._held:
            goes_on = self._read_body(out, is_final) if self._state != "between" else self._read_header(out, is_final)
            if not goes_on:
                break
        if is_final and (self._held or self._state == "call"):
            # A header without its message, or before the first character of one.
            out.append(Content(self._header + _MESSAGE if self._state == "call" else self._held))
            self._held, self._state = "", "between"
        return out

    def _read_header(self, out: list[Delta], is_final: bool) -> bool:
        text = self._held
        if not any(text.startswith(h) or h.startswith(text) for h in _HEADS):
            self._header, self._state = "", "text"
            return True
        end = text.find(_MESSAGE)
        if end < 0:
            return False
        self._header, self._held = text[:end], text[end + len(_MESSAGE) :]
        channel = _CHANNEL.search(self._header)
        if _RECIPIENT.search(self._header) is not None:
            self._state = "call"
        else:
            self._state = "reasoning" if channel is not None and channel["channel"] == "analysis" else "text"
        return True

    def _read_body(self, out: list[Delta], is_final: bool) -> bool:
        match = _END.search(self._held)
        if self._state == "call":
            if match is None and not is_final:
                return False
            body = self._held if match is None else self._held[: match.start()]
            out.append(self._call(body))
        else:
            body = self._held[: len(self._held) if is_final else self._safe_length()] if match is None else ""
            body = self._held[: match.start()] if match is not None else body
            if body:
                out.append(Reasoning(body) if self._state == "reasoning" else Content(body))
            if match is None:
                self._held = self._held[len(body) :]
                return False
        if match is None:
            self._held, self._state = "", "between"
            return False
        self._held = self._held[match.start() if match[0] == "<|start|>" else match.end() :]
        self._state = "between"
        return True

    def _call(self, body: str) -> Delta:
        recipient = _RECIPIENT.search(self._header)
        assert recipient is not None
        arguments = read_arguments(body.strip())
        if arguments is None:
            return Content(self._header + _MESSAGE + body)
        return Call(recipient["name"], arguments)

    def _safe_length(self) -> int:
        for length in range(min(max(map(len, _ENDS)) - 1, len(self._held)), 0, -1):
            if any(e.startswith(self._held[-length:]) for e in _ENDS):
                return len(self._held) - length
        return len(self._held)


class Harmony(Syntax):
    """Implements Syntax; it has a parser of its own."""

    name = "harmony"
    openers = ("<|channel|>",)
    closers = ("<|end|>", "<|call|>")
    inner = ("<|message|>", "<|start|>", "<|return|>", "<|constrain|>")

    def parser(self, tools: Tools) -> Parser:
        """Return a parser for one answer."""
        return HarmonyParser(tools)

    def render(self, calls: list[Call]) -> str:
        """Return calls as the model would write them."""
        return "<|start|>assistant".join(
            f"<|channel|>commentary to=functions.{c.name} <|constrain|>json<|message|>{c.arguments}<|call|>"
            for c in calls
        )

    def grammar(self, rules: Rules, tools: Tools, *, is_parallel: bool) -> str:
        """Return the body of a rule for one call, after reasoning if the model wants to; there is one a turn."""
        bodies = [
            f"{literal(f' to=functions.{name} <|constrain|>json<|message|>')} "
            + rules.schema(f"{rule_name(name)}-arguments", schema)
            for name, schema in tools.items()
        ]
        return f'{_ANALYSIS} "<|channel|>commentary" {either(bodies)}'

    def answer(self, body: str) -> str:
        """Return the body of a rule for an answer whose text is held to `body`, after reasoning."""
        return f'{_ANALYSIS} "<|channel|>final<|message|>" {body}'
