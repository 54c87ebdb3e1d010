"""Server-sent events as the dialects write them."""

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment; clients skip it, proxies and timeouts see that somebody is there."""


def comment(reason: str) -> bytes:
    """Return a comment that says why nothing comes."""
    return f": {reason}\n\n".encode()


def frame(data: bytes) -> bytes:
    """Return an unnamed event whose data is one line of JSON."""
    return b"data: " + data + b"\n\n"
