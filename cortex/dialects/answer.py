"""One job's events as what a client is shown: reasoning, content, calls. The canonical stream of every dialect."""

from typing import NamedTuple

from common.formats import family
from common.formats.contract import Call, Content, Delta, Parser, Tools
from common.messages import EndedItem, StartedItem
from cortex.fleet.contract import tokens_of


class Offer(NamedTuple):
    """What a request lets the model call."""

    tools: Tools
    is_parallel: bool = True


class Answer:
    """Reads one job's text in the format that its Started names."""

    def __init__(self, offer: Offer | None) -> None:
        """`offer` None: nothing can be called, and what looks like a call is content."""
        self._offer = offer
        self._parser: Parser | None = None
        self.calls = 0
        """So far."""
        self.reasoning_tokens = 0
        """So far, with the markers around the thoughts."""

    def begin(self, item: StartedItem) -> None:
        """Take the job's beginning."""
        found = family.find(item.format)
        if found is not None:
            tools = self._offer.tools if self._offer is not None else None
            self._parser = found.parser(tools, is_open=item.thinking_open)

    @property
    def is_plain(self) -> bool:
        """Whether all text is content."""
        return self._parser is None

    def push(self, text: str, tokens: int | None = None) -> list[Delta]:
        """Take text, made of so many tokens (None: as many as it says); return what is certain by now."""
        if self._parser is None:
            return [Content(text)]
        # A piece that ends the thoughts counts with them: mostly it is their closing marker.
        was_thinking = self._parser.is_thinking
        deltas = self._parser.push(text)
        if was_thinking or self._parser.is_thinking:
            self.reasoning_tokens += tokens_of(text) if tokens is None else tokens
        return self._limit(deltas)

    def finish(self) -> list[Delta]:
        """Return what was held back."""
        return [] if self._parser is None else self._limit(self._parser.finish())

    def _limit(self, deltas: list[Delta]) -> list[Delta]:
        """Count calls, and drop those after the first where only one was asked for."""
        out: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Call):
                if self._offer is None or (self.calls and not self._offer.is_parallel):
                    continue
                self.calls += 1
            out.append(delta)
        return out

    def reason(self, item: EndedItem) -> str:
        """Return why the answer ended: stop, stop_sequence, length or tool_calls. To be asked after finish()."""
        return "tool_calls" if self.calls and item.reason != "length" else item.reason
