"""One HTTP request and what became of it: ids, the call to abort, and the line in the log."""

import asyncio
import logging
import re
from typing import Any

from common.ids import new_request_id
from common.log import fields
from cortex.access.access import NOBODY, Identity
from cortex.access.meter import Ticket
from cortex.dialects.contract import Body, Stream
from cortex.fleet.contract import Call

log = logging.getLogger("cortex.access")

SCOPE_KEY = "helexa.exchange"
"""Where the ASGI scope carries it."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Asked every few seconds by machines; logged at debug."""


class Exchange:
    """Made when a request arrives, finished exactly once."""

    def __init__(self, scope: dict[str, Any]) -> None:
        # ASGI allows iterators here, and Falcon reads them too.
        headers: list[tuple[bytes, bytes]] = [(name, value) for name, value in scope["headers"]]
        scope["headers"] = headers
        self.path: str = scope["path"]
        query: bytes = scope.get("query_string", b"")
        self.is_query_text = query.isascii() or query == query.decode(errors="replace").encode()
        """Falcon reads it as UTF-8, whatever it is."""
        self.method: str = scope["method"]
        self.request_id = _take_request_id(headers)
        self.headers = headers
        self.address: str
        self.address, *_ = scope.get("client") or ["local"]
        self.identity: Identity = NOBODY
        """Who asks, once that is decided."""
        self.answer_headers: list[tuple[bytes, bytes]] = []
        """For the browser that the request comes from."""
        self.ticket: Ticket | None = None
        """What it has been granted; None where there are no limits."""
        self.content_length = _content_length(headers)
        self.status = 0
        """0: no status was sent."""
        self.model: str | None = None
        """As the client names it, until it is known."""
        self.known_model: str | None = None
        """The id of a model that exists."""
        self.dialect: str | None = None
        self.call: Call | None = None
        self.reply: Stream | Body | None = None
        """What is made of the call's events."""
        self.outcome: str | None = None
        self.began_at = asyncio.get_running_loop().time()

    @property
    def verdict(self) -> str:
        """How it ended: `ok`, `client gone`, or an error's code."""
        return self.outcome or ("ok" if 0 < self.status < 400 else "error")

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thoughts so far, a part of the call's."""
        return 0 if self.reply is None else self.reply.reasoning_tokens

    def charge(self) -> None:
        """Count the tokens that it has had so far against its limits."""
        if self.ticket is not None and self.call is not None:
            self.ticket.charge(self.call.record.prompt_tokens + self.call.tokens)

    def finish(self) -> None:
        """Abort what still runs, give back what was granted, and log the request."""
        call = self.call
        self.charge()
        if self.ticket is not None:
            self.ticket.close()
        if call is not None:
            call.close()
        level = logging.DEBUG if self.path in _QUIET_PATHS else logging.INFO
        if not log.isEnabledFor(level):
            return
        log.log(
            level,
            "%s %s",
            self.method,
            self.path,
            extra=fields(
                status=self.status or None,
                outcome=self.verdict,
                request_id=self.request_id,
                principal=self.identity.name,
                dialect=self.dialect,
                model=self.model,
                **({} if call is None else self._measured(call)),
                seconds=round(asyncio.get_running_loop().time() - self.began_at, 3),
            ),
        )

    def _measured(self, call: Call) -> dict[str, object]:
        record, timings = call.record, call.record.timings
        return {
            "node": record.node,
            "prompt_tokens": record.prompt_tokens or None,
            "cached": record.cached_tokens or None,
            "tokens": call.tokens,
            "reasoning": self.reasoning_tokens or None,
            "ttft_ms": None if call.first_text_at is None else round((call.first_text_at - self.began_at) * 1000, 1),
            "queue_ms": None if timings is None else round(timings.queue_ms, 1),
            "prompt_ms": None if timings is None else round(timings.prompt_ms, 1),
            "predicted_ms": None if timings is None else round(timings.predicted_ms, 1),
            "cold": record.is_cold or None,
            "recoveries": record.recoveries or None,
        }


def _take_request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _SANE_ID.fullmatch(text):
                return text
    return new_request_id()


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
