"""Reads SSE streams with the time of each event, for tests about gaps and ends."""

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson


@dataclass
class Reading:
    """What one streaming request gave."""

    status: int = 0
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """(monotonic seconds, decoded data) of each event but [DONE]."""
    comments: int = 0
    done: bool = False
    """Whether [DONE] came."""
    body: str = ""
    """Of an answer that is no stream."""
    problem: Exception | None = None

    @property
    def text(self) -> str:
        """The content, put together."""
        return "".join(self._content(e) for _, e in self.events)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error event, if one came."""
        return next((e["error"] for _, e in self.events if "error" in e), None)

    @property
    def finish_reason(self) -> str | None:
        """The finish reason, if one came."""
        reasons = [c.get("finish_reason") for _, e in self.events for c in e.get("choices", [])]
        return next((r for r in reasons if r), None)

    def token_times(self) -> list[float]:
        """Return when each event with content came."""
        return [at for at, e in self.events if self._content(e)]

    def gaps(self, start: float = 0.0, end: float = float("inf")) -> list[float]:
        """Return the waits between contents that ended within [start, end]."""
        times = self.token_times()
        return [b - a for a, b in itertools.pairwise(times) if start <= b <= end]

    @staticmethod
    def _content(event: dict[str, Any]) -> str:
        for choice in event.get("choices", []):
            content = choice.get("delta", {}).get("content") or choice.get("text") or ""
            return str(content)
        return ""


class Stream(threading.Thread):
    """One streaming request in a thread; `started` is set with the first content."""

    def __init__(self, url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(daemon=True)
        self._headers = headers
        self._url = url
        self._body = {**body, "stream": True}
        self._is_wanted = True
        self.reading = Reading()
        self.started = threading.Event()
        self.start()

    def run(self) -> None:
        """Read until the end."""
        try:
            with httpx.stream(
                "POST", self._url, json=self._body, headers=self._headers, timeout=httpx.Timeout(120.0)
            ) as response:
                self.reading.status = response.status_code
                if response.status_code != 200:
                    self.reading.body = response.read().decode()
                    return
                for line in response.iter_lines():
                    self._take(line)
                    if not self._is_wanted:
                        return
        except httpx.HTTPError as error:
            self.reading.problem = error
        finally:
            self.started.set()

    def _take(self, line: str) -> None:
        if line.startswith(":"):
            self.reading.comments += 1
        elif line == "data: [DONE]":
            self.reading.done = True
        elif line.startswith("data: "):
            self.reading.events.append((time.monotonic(), orjson.loads(line[6:])))
            if self.reading.token_times():
                self.started.set()

    def stop(self) -> Reading:
        """Drop the connection with the next line that comes, and return what came until then."""
        self._is_wanted = False
        return self.finish()

    def finish(self, timeout_s: float = 100.0) -> Reading:
        """Wait for the end and return what came."""
        self.join(timeout_s)
        assert not self.is_alive(), "the stream has not ended"
        return self.reading


def chat(model: str, text: str, **options: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **options}
