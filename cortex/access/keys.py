"""API keys: how one looks, what is written down of it, and how it is recognised. Pure.

A key is `sk-cortex-ID-SECRET`. Written down are the id and the SHA-256 of the whole; a secret of 192 random bits
needs no slow hash. The id finds the entry, and one comparison in constant time decides.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Role = Literal["use", "admin", "metrics"]
"""use: the endpoints that answer with models; metrics: those of `access.metrics_key`; admin: everything."""
Limit = Annotated[int, Meta(ge=1)] | None
_KEY = re.compile(r"sk-cortex-([0-9a-f]{8})-[0-9a-f]{48}")


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much a client may ask of one gateway host. Unset: as much as it likes."""

    concurrent: Limit = None
    """Requests at a time."""
    requests_per_minute: Limit = None
    """In any 60 seconds."""
    tokens_per_minute: Limit = None
    """Of prompts and answers together, in any 60 seconds."""
    tokens_per_day: Limit = None
    """Of prompts and answers together, from midnight UTC."""

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self != UNLIMITED


UNLIMITED = Limits()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is written down of a key."""

    id: str
    hash: str
    """SHA-256 of the key, hexadecimal."""
    row: int
    """Where its use is counted in memory that the gateway processes share; its own as long as it is not forgotten."""
    created_at: int
    """Seconds since 1970, as all times here."""
    comment: str = ""
    role: Role = "use"
    models: list[str] | None = None
    """Ids of the models it may use; None: all."""
    limits: Limits = Limits()
    revoked_at: int | None = None
    old_hash: str | None = None
    """Of the key before the last rotation."""
    old_until: int = 0
    """When that one ends."""
    later: dict[str, Any] = {}
    """What a newer gateway has written of it. It may be a limit, so this one refuses the key, and keeps it as it is."""

    def matches(self, key: str, now: float) -> bool:
        """Say whether this is the entry of a key that is valid, in a time that does not tell how much was right."""
        sent = digest(key)
        is_current = hmac.compare_digest(sent, self.hash)
        is_old = hmac.compare_digest(sent, self.old_hash or "") and now < self.old_until
        return (is_current or is_old) and self.revoked_at is None and not self.later


def decode_entry(row: dict[str, Any]) -> ApiKey:
    """Read an entry of the file. Raises msgspec.ValidationError."""
    ours, later = _split(row, ApiKey)
    later.update({"later": ours.pop("later")} if "later" in ours else {})
    if isinstance(row.get("limits"), dict):
        ours["limits"], unknown = _split(row["limits"], Limits)
        later.update({"limits": unknown} if unknown else {})
    return msgspec.structs.replace(msgspec.convert(ours, ApiKey), later=later)


def encode_entry(key: ApiKey) -> dict[str, Any]:
    """Return what is written down, with what a newer gateway has written there."""
    row: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(key, later={}))
    limits = {**row.get("limits", {}), **key.later.get("limits", {})}
    return {**row, **key.later, **({"limits": limits} if limits else {})}


def _split(row: dict[str, Any], kind: type[msgspec.Struct]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {k: v for k, v in row.items() if k in kind.__struct_fields__}
    return known, {k: v for k, v in row.items() if k not in known}


def spell(id: str, secret: str) -> str:
    """Return the key of an id and a secret of 48 hexadecimal digits."""
    return f"sk-cortex-{id}-{secret}"


def read_id(key: str) -> str | None:
    """Return the id that a key carries; None for what does not look like one of ours."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def digest(key: str) -> str:
    """Return what is written down instead of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """All keys that were ever made, the revoked ones included."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    def __bool__(self) -> bool:
        """Whether a key was ever made."""
        return bool(self._keys)

    @property
    def has_admin(self) -> bool:
        """Whether a valid key opens /fleet."""
        return any(k.role == "admin" and k.revoked_at is None and not k.later for k in self._keys.values())

    def find(self, id: str) -> ApiKey | None:
        """Return the entry of an id."""
        return self._keys.get(id)

    def recognise(self, key: str, now: float) -> ApiKey | None:
        """Return the entry of a key, None if it is unknown, revoked, or rotated away."""
        id = read_id(key)
        entry = None if id is None else self._keys.get(id)
        return entry if entry is not None and entry.matches(key, now) else None

    def entries(self) -> list[ApiKey]:
        """Return all entries, in the order of their making."""
        return list(self._keys.values())
