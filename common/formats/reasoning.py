"""Reasoning before the answer, between two markers of the model's template."""

from typing import NamedTuple

from common.formats.contract import Content, Delta, Parser, Reasoning


class Markers(NamedTuple):
    """What stands around reasoning."""

    name: str
    begin: str
    end: str


THINK = Markers("think", "<think>", "</think>")
FAMILIES = (
    THINK,
    Markers("mistral-think", "[THINK]", "[/THINK]"),
    Markers("gemma-thought", "<|channel>thought", "<channel|>"),
    Markers("command-think", "<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("seed-think", "<seed:think>", "</seed:think>"),
    Markers("reasoning", "<reasoning>", "</reasoning>"),
    Markers("thought", "<thought>", "</thought>"),
    Markers("thinking", "<thinking>", "</thinking>"),
)


def detect(template: str) -> Markers | None:
    """Return the markers that a chat template knows."""
    return next((m for m in FAMILIES if m.begin in template or m.end in template), None)


def is_opened_by(prompt: str, markers: Markers) -> bool:
    """Say whether the prompt itself begins the reasoning."""
    return prompt.rstrip().endswith(markers.begin)


class ReasoningParser:
    """Reasoning at the beginning of an answer; what follows goes to the next parser. Space around it is dropped."""

    def __init__(self, markers: Markers, *, is_open: bool, rest: Parser | None) -> None:
        """`is_open`: the prompt has begun it. `rest` None: all that follows is content."""
        self._begin, self._end = markers.begin, markers.end
        self._rest = rest
        self._held = ""
        self._state = "inside" if is_open else "before"
        self._may_repeat = is_open
        """Whether the model may write the marker though the prompt had it."""
        self._has_text = False
        """Whether reasoning has been shown."""
        self._is_bare = False
        """Whether only space has come since the reasoning's end."""

    @property
    def is_thinking(self) -> bool:
        """Whether what was read so far ends within reasoning."""
        return self._state == "inside"

    def push(self, text: str) -> list[Delta]:
        """Take the next text; return what is certain by now."""
        if self._state == "after" and not self._is_bare:
            return self._pass(text)
        if (
            self._state == "inside"
            and self._has_text
            and not self._held
            and self._end[0] not in text
            and text
            and not text[-1].isspace()
        ):
            return [Reasoning(text)]
        self._held += text
        return self._drain(is_final=False)

    def finish(self) -> list[Delta]:
        """Return the rest; reasoning that was cut off stays reasoning."""
        out = self._drain(is_final=True)
        return out + (self._rest.finish() if self._rest is not None else [])

    def _drain(self, *, is_final: bool) -> list[Delta]:
        out: list[Delta] = []
        if self._state == "before":
            self._read_before(is_final)
        if self._state == "inside":
            self._read_inside(out, is_final)
        if self._state == "after":
            text = self._held.lstrip() if self._is_bare else self._held
            if text:
                self._is_bare = False
                self._held = ""
                out += self._pass(text)
        return out

    def _read_before(self, is_final: bool) -> None:
        text = self._held.lstrip()
        if text.startswith(self._begin):
            self._state, self._held = "inside", text[len(self._begin) :]
        elif is_final or not self._begin.startswith(text):
            self._state = "after"

    def _read_inside(self, out: list[Delta], is_final: bool) -> None:
        if self._may_repeat:
            text = self._held.lstrip()
            if not is_final and text != self._begin and self._begin.startswith(text):
                return
            self._held, self._may_repeat = text.removeprefix(self._begin), False
        if not self._has_text:
            self._held = self._held.lstrip()
        end = self._held.find(self._end)
        if end >= 0:
            self._show(out, self._held[:end].rstrip())
            self._state, self._is_bare, self._held = "after", True, self._held[end + len(self._end) :]
            return
        if is_final:
            self._show(out, self._held)
            self._held = ""
            return
        kept = self._held[: len(self._held) - self._longest_beginning()].rstrip()
        self._show(out, kept)
        self._held = self._held[len(kept) :]

    def _longest_beginning(self) -> int:
        for length in range(min(len(self._end) - 1, len(self._held)), 0, -1):
            if self._end.startswith(self._held[-length:]):
                return length
        return 0

    def _show(self, out: list[Delta], text: str) -> None:
        if text:
            out.append(Reasoning(text))
            self._has_text = True

    def _pass(self, text: str) -> list[Delta]:
        if not text:
            return []
        return [Content(text)] if self._rest is None else self._rest.push(text)
