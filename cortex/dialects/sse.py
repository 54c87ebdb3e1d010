"""Server-sent events as the dialects write them."""

import orjson

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment; clients skip it, proxies and timeouts see that somebody is there."""


def event(data: object) -> bytes:
    """Return an unnamed event with JSON data."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
