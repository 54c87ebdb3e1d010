"""The key in a request's headers, and what a client without a known one is called."""

import hashlib
from collections.abc import Iterable


def find_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key of `Authorization: Bearer …` or `x-api-key`, whichever comes first."""
    for name, value in headers:
        if name == b"x-api-key" and value.strip():
            return value.strip().decode("latin-1")
        if name == b"authorization" and value[:7].lower() == b"bearer " and value[7:].strip():
            return value[7:].strip().decode("latin-1")
    return None


def name_principal(key: str | None, address: str) -> str:
    """Return what a client is called: an id of its key (the key cannot be told from it), else its address."""
    if key is None:
        return address
    return "key:" + hashlib.sha256(key.encode()).hexdigest()[:12]
