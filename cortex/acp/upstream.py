"""The endpoint's side: one streamed reply, retried while it is busy, ended only by silence or by its own end."""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from common.log import fields
from cortex.acp.configuration import Endpoint
from cortex.acp.history import Message

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_LIST_TIMEOUT_S = 3.0
_TRIES = 6
_MOST_WAIT_S = 60.0
_MOST_CALLS = 256
"""That a reply may begin at once; an index far beyond is no call but a mistake, or worse."""


class UpstreamError(Exception):
    """The endpoint refused, broke off or fell silent; the text is for the user."""


@dataclass
class Reply:
    """One model reply, as far as it has come."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0

    def add(self, chunk: dict[str, Any]) -> tuple[str, str]:
        """Take a chunk of the stream; return its text and its reasoning. Raises UpstreamError for an error in it."""
        if error := chunk.get("error"):
            raise UpstreamError(f"the endpoint failed: {error.get('message') if isinstance(error, dict) else error}")
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.output_tokens = usage.get("completion_tokens") or 0
        choices = chunk.get("choices")
        if not choices:
            return "", ""
        delta = choices[0].get("delta") or {}
        text = delta.get("content") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        self.text += text
        self.reasoning += reasoning
        for part in delta.get("tool_calls") or ():
            self._add_call(part)
        self.finish = choices[0].get("finish_reason") or self.finish
        return text, reasoning

    def _add_call(self, part: dict[str, Any]) -> None:
        index = part.get("index", len(self.calls))
        if index > len(self.calls) + _MOST_CALLS:
            raise ValueError(index)
        while len(self.calls) <= index:
            self.calls.append({"id": "", "name": "", "arguments": ""})
        function, given = part.get("function") or {}, part.get("id") or ""
        if not isinstance(given, str):
            raise TypeError(given)
        call = self.calls[index]
        call["id"] = given or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""

    def name_calls(self, taken: set[str]) -> None:
        """Give every call an id that the session has not used; some servers count from zero in each reply."""
        for call in self.calls:
            if not call["id"] or call["id"] in taken:
                call["id"] = f"call_{uuid.uuid4().hex[:24]}"
            taken.add(call["id"])


class Upstream:
    """The configured endpoints over HTTP."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(follow_redirects=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def models(self, endpoint: Endpoint) -> list[str]:
        """Return the endpoint's model ids; none where it does not answer soon."""
        try:
            async with asyncio.timeout(_LIST_TIMEOUT_S):
                answer = await self._client.get(f"{endpoint.base_url}/models", headers=_headers(endpoint))
            answer.raise_for_status()
            return [str(row["id"]) for row in answer.json()["data"]]
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError) as error:
            log.warning("models not listed", extra=fields(endpoint=endpoint.base_url, error=str(error) or repr(error)))
            return []

    async def stream(
        self, endpoint: Endpoint, body: dict[str, Any], reply: Reply, on_wait: Callable[[float], None]
    ) -> AsyncIterator[tuple[str, str]]:
        """Fill `reply` and yield each piece of text and reasoning as it comes.

        `on_wait` is told of each pause for a busy endpoint, in seconds. Raises UpstreamError; what had come stays in
        `reply`.
        """
        request = {"stream": True, "stream_options": {"include_usage": True}, **body}
        url = f"{endpoint.base_url}/chat/completions"
        timeout = httpx.Timeout(endpoint.idle_timeout_s, connect=_CONNECT_TIMEOUT_S)
        call: dict[str, Any] = {"json": request, "headers": _headers(endpoint), "timeout": timeout}
        try:
            for left in reversed(range(_TRIES)):
                async with self._client.stream("POST", url, **call) as answer:
                    if answer.status_code in (429, 503) and left:
                        wait_s = _retry_after(answer.headers.get("retry-after"), _TRIES - left)
                    elif answer.status_code != 200:
                        raise UpstreamError(_refusal(answer.status_code, await answer.aread()))
                    else:
                        async for piece in _read(answer, reply):
                            yield piece
                        return
                on_wait(wait_s)
                await asyncio.sleep(wait_s)
        except httpx.ReadTimeout as error:
            raise UpstreamError(f"{url}: nothing came for {endpoint.idle_timeout_s} s") from error
        except httpx.HTTPError as error:
            text = str(error) or type(error).__name__
            raise UpstreamError(f"{url}: the connection failed or broke off ({text})") from error


async def _read(answer: httpx.Response, reply: Reply) -> AsyncIterator[tuple[str, str]]:
    damaged = ""
    async for line in answer.aiter_lines():
        if damaged:
            raise UpstreamError(f"the endpoint sent an event that is not JSON: {damaged[:200]}")
        if not line.startswith("data:"):
            continue  # a comment, or the name of an event
        data = line[5:].strip()
        if data == "[DONE]":
            break
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            damaged = data  # or cut: nothing follows then
            continue
        if not isinstance(chunk, dict):
            raise UpstreamError(f"the endpoint sent an event that is no object: {data[:200]}")
        try:
            piece = reply.add(chunk)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise UpstreamError(f"the endpoint sent an event of another shape: {data[:200]}") from None
        if any(piece):
            yield piece
    if reply.finish is None:
        raise UpstreamError("the endpoint's stream ended in the middle of the reply")


def request_body(
    model: str, messages: list[Message], tools: list[dict[str, Any]], max_tokens: int | None
) -> dict[str, Any]:
    """Return the body of a request."""
    body: dict[str, Any] = {"model": model, "messages": messages}
    if tools:
        body["tools"] = tools
    if max_tokens:
        body["max_tokens"] = max_tokens
    return body


def _headers(endpoint: Endpoint) -> dict[str, str]:
    return {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}


def _retry_after(header: str | None, attempt: int) -> float:
    try:
        return min(max(float(header or ""), 0.0), _MOST_WAIT_S)
    except ValueError:
        return min(0.5 * 2.0**attempt, _MOST_WAIT_S)  # none given, or a date


def _refusal(status: int, content: bytes) -> str:
    text = content.decode("utf-8", "replace")[:500]
    with contextlib.suppress(
        ValueError, KeyError, TypeError
    ):  # no OpenAI envelope: the text itself is the best there is
        text = json.loads(content)["error"]["message"]
    return f"the endpoint answered {status}: {text}"
