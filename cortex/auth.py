"""Who asks: the key in a request's headers, what it is called in logs and queues, and whether it is an admin's."""

import hashlib
import hmac
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


def is_admin(key: str | None, admin_keys: Iterable[str]) -> bool:
    """Compare with every admin key, in a time that does not tell how much of one was right."""
    sent = (key or "").encode()
    matches = [hmac.compare_digest(sent, known.encode()) for known in admin_keys]
    return any(matches)
