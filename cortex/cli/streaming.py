"""One streamed chat request over HTTP, with its times; for `cortex chat` and `cortex bench`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from common.errors import HelexaError

CONNECT_S = 10.0
SILENCE_S = 60.0
"""The gateway says something every few seconds, whatever the model does."""


class ChatFailed(HelexaError):
    """The gateway refused the request, or it ended with an error."""


@dataclass
class Spoken:
    """One answer. Times in seconds."""

    text: str = ""
    thought: str = ""
    """Its reasoning, where the model shows one."""
    began_at: float = field(default_factory=time.perf_counter)
    text_at: list[float] = field(default_factory=list)
    """When each piece came."""
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None

    @property
    def tokens(self) -> int:
        """Return the tokens of the answer."""
        return int(self.usage.get("completion_tokens", len(self.text_at)))

    @property
    def ttft_s(self) -> float | None:
        """Return the time to the first piece."""
        return self.text_at[0] - self.began_at if self.text_at else None

    @property
    def tokens_per_s(self) -> float | None:
        """Return the speed from the first piece to the last."""
        if len(self.text_at) < 2 or self.text_at[-1] <= self.text_at[0]:
            return None
        return (self.tokens - 1) / (self.text_at[-1] - self.text_at[0])

    @property
    def gaps_s(self) -> list[float]:
        """Return the times between two pieces."""
        return [b - a for a, b in zip(self.text_at, self.text_at[1:], strict=False)]


def converse(
    client: httpx.Client,
    url: str,
    body: dict[str, Any],
    heard: Callable[[str, bool], None] = lambda text, is_thought: None,
) -> Spoken:
    """Send a chat request and take the answer as it comes; `heard` gets each piece, and whether it is reasoning.

    Raises ChatFailed, and httpx.TransportError where nobody answers.
    """
    spoken = Spoken()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    limits = httpx.Timeout(CONNECT_S, read=SILENCE_S)
    is_complete = False
    with client.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=limits) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ChatFailed(_reason(answer))
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                is_complete = True
            elif line.startswith("data: "):
                _take(spoken, orjson.loads(line[6:]), heard)
    if not is_complete:
        raise ChatFailed("the stream ended before the answer did")
    return spoken


def _take(spoken: Spoken, chunk: dict[str, Any], heard: Callable[[str, bool], None]) -> None:
    if "error" in chunk:
        raise ChatFailed(str(chunk["error"].get("message")))
    spoken.usage = chunk.get("usage") or spoken.usage
    for choice in chunk.get("choices", []):
        spoken.finish_reason = choice.get("finish_reason") or spoken.finish_reason
        delta = choice.get("delta", {})
        text, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
        if text or thought:
            spoken.text_at.append(time.perf_counter())
            spoken.text += text
            spoken.thought += thought
            heard(thought or text, bool(thought))


def _reason(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.read())["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"the gateway answers {answer.status_code}"
