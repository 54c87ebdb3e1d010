"""What both forms of an OpenAI reply count: which jobs have begun and ended, texts, usage, timings."""

from typing import Any

from common.messages import EndedItem, StartedItem, TokenLogprob
from cortex.dialects.canonical import Generation
from cortex.fleet.contract import Events, Told


class Tally:
    """Keeps the first and last event of every job of one request."""

    def __init__(self, generation: Generation) -> None:
        self._size = generation.size
        self._n = generation.n
        self._started: dict[int, StartedItem] = {}
        self._ended: dict[int, EndedItem] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""
        return len(self._ended) == self._size

    def begin(self, index: int, item: StartedItem) -> None:
        """Note the beginning of a job."""
        self._started[index] = item

    def end(self, index: int, item: EndedItem) -> str:
        """Note the end of a job and return OpenAI's finish_reason."""
        self._ended[index] = item
        return "length" if item.reason == "length" else "stop"

    def usage(self, reasoning_tokens: int | None = None) -> dict[str, Any]:
        """Return OpenAI's usage: a prompt counts once, however many answers it got."""
        firsts = [self._started[i] for i in range(0, self._size, self._n)]
        prompt = sum(s.prompt_tokens for s in firsts)
        completion = sum(e.total for e in self._ended.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in firsts)},
            **(
                {}
                if reasoning_tokens is None
                else {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}
            ),
        }

    def timings(self) -> dict[str, Any]:
        """Return llama-server's timings. Counts are sums; times are the longest, as jobs run side by side."""
        firsts = [self._ended[i].timings for i in range(0, self._size, self._n)]
        every = [e.timings for e in self._ended.values()]
        prompt_n, prompt_ms = sum(t.prompt_n for t in firsts), max(t.prompt_ms for t in firsts)
        predicted_n, predicted_ms = sum(t.predicted_n for t in every), max(t.predicted_ms for t in every)
        return {
            "cache_n": sum(t.cache_n for t in firsts),
            "prompt_n": prompt_n,
            "prompt_ms": prompt_ms,
            **_rates("prompt", prompt_n, prompt_ms),
            "predicted_n": predicted_n,
            "predicted_ms": predicted_ms,
            **_rates("predicted", predicted_n, predicted_ms),
        }


def _rates(name: str, tokens: int, milliseconds: float) -> dict[str, float]:
    if tokens == 0 or milliseconds <= 0:
        return {}
    return {f"{name}_per_token_ms": milliseconds / tokens, f"{name}_per_second": tokens * 1000 / milliseconds}


class Collector:
    """The texts and ends of all choices of a reply that is sent whole."""

    reasoning_tokens = 0
    """All text is the answer's."""

    def __init__(self, generation: Generation) -> None:
        self.tally = Tally(generation)
        self.texts: list[list[str]] = [[] for _ in range(generation.size)]
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(generation.size)]
        self.reasons = [""] * generation.size

    @property
    def is_complete(self) -> bool:
        """Whether every job has ended well."""
        return self.tally.is_complete

    def feed(self, events: Events) -> None:
        """Take events."""
        for index, event in events:
            if isinstance(event, str):
                self.texts[index].append(event)
            elif isinstance(event, Told):
                self.texts[index].append(event.text)
                self.logprobs[index] += event.logprobs
            elif isinstance(event, StartedItem):
                self.tally.begin(index, event)
            else:
                assert isinstance(event, EndedItem)
                self.reasons[index] = self.tally.end(index, event)
