"""Who asks, and whether they may.

| sent                                | is                                                                      |
|-------------------------------------|-------------------------------------------------------------------------|
| a key of `cortex keys`              | its owner; refused where it is unknown, revoked or rotated away          |
| a key of `gateway.admin_keys`       | an admin                                                                |
| anything else, or nothing           | anonymous, where they are let in: clients that need some key send `none` |
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import Code, RequestError
from cortex.access.headers import find_key, name_principal
from cortex.access.keys import UNLIMITED, ApiKey, KeyRing, Limits, Role, read_id
from cortex.dialects.canonical import ANONYMOUS_PRIORITY, ORDINARY_PRIORITY

ADMIN_PREFIX = "/fleet"
PAGE_PREFIX = "/dashboard/"
"""The files of the page at /, which are the same for everybody; what it shows, it asks for with a key."""
OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health", "/version"})
"""Need no key: they tell machines that the gateway lives, and nothing of models or people."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request."""

    name: str
    """In logs and queues. The key cannot be told from it."""
    role: Role
    key: ApiKey | None = None
    """None: anonymous, or an admin of the configuration."""
    is_anonymous: bool = False
    limits: Limits = UNLIMITED

    @property
    def label(self) -> str:
        """In metrics and usage."""
        return "anonymous" if self.is_anonymous else "admin" if self.key is None else self.key.id

    @property
    def priority(self) -> int:
        """Of the jobs of its requests; lower comes first."""
        return ANONYMOUS_PRIORITY if self.is_anonymous else ORDINARY_PRIORITY

    def may_use(self, model: str) -> bool:
        """Say whether a model, by its id, is among those that the key is for."""
        return self.key is None or self.key.models is None or model in self.key.models

    def require(self, model: str) -> None:
        """Raise RequestError unless the model may be used."""
        if not self.may_use(model):
            raise RequestError(Code.PERMISSION_DENIED, f"this key is not for the model '{model}'", param="model")


NOBODY = Identity("unknown", "use", is_anonymous=True)


class Access:
    """Decides by path and headers. One in each gateway process."""

    def __init__(
        self,
        admin_keys: frozenset[str] = frozenset(),
        *,
        anonymous: bool | None = None,
        anonymous_limits: Limits = UNLIMITED,
        ring: Callable[[], KeyRing] = KeyRing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`anonymous`: None lets them in until the first key is made. `ring`: returns the keys in force."""
        self._admin_keys = admin_keys
        self._anonymous = anonymous
        self._anonymous_limits = anonymous_limits
        self._ring = ring
        self._clock = clock

    @property
    def lets_anybody_in(self) -> bool:
        """Whether a key is not needed."""
        return not self._ring() if self._anonymous is None else self._anonymous

    def identify(self, path: str, headers: list[tuple[bytes, bytes]], address: str) -> Identity:
        """Return who asks for a path. Raises RequestError where they may not."""
        is_admin_path = path == ADMIN_PREFIX or path.startswith(ADMIN_PREFIX + "/")
        if is_admin_path and not self._admin_keys and not self._ring().has_admin:
            raise RequestError(Code.NOT_FOUND, f"there is nothing at {path}")
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX):
            return Identity(address, "use", is_anonymous=True)
        identity = self._recognise(find_key(headers), address)
        if identity.role == "metrics":
            raise RequestError(Code.PERMISSION_DENIED, "this key is for metrics only")
        if not is_admin_path or identity.role == "admin":
            return identity
        if identity.is_anonymous:
            raise _needs("an admin key")
        raise RequestError(Code.PERMISSION_DENIED, "this key is not an admin's")

    def may_read_metrics(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Say whether a request for metrics carries a key for them."""
        try:
            return self._recognise(find_key(headers), "").role in ("metrics", "admin")
        except RequestError:
            return False

    def is_in_force(self, identity: Identity) -> bool:
        """Say whether the key of a request that is running has not been revoked since."""
        if identity.key is None:
            return True
        entry = self._ring().find(identity.key.id)
        return entry is not None and entry.revoked_at is None

    def _recognise(self, sent: str | None, address: str) -> Identity:
        if sent is not None:
            # All of them, so that the time does not tell which one was nearly right.
            matches = [hmac.compare_digest(sent.encode(), k.encode()) for k in self._admin_keys]
            if any(matches):
                return Identity("admin", "admin")
            entry = self._ring().recognise(sent, self._clock())
            if entry is not None:
                return Identity(f"key:{entry.id}", entry.role, entry, limits=entry.limits)
            if read_id(sent) is not None:
                raise RequestError(Code.INVALID_API_KEY, "this key is not valid, or not any more")
        if not self.lets_anybody_in:
            raise _needs("a key")
        # Before there are keys, whatever somebody sends as one tells clients of the same address apart.
        name = address if self._ring() else name_principal(sent, address)
        return Identity(name, "use", is_anonymous=True, limits=self._anonymous_limits)


def _needs(what: str) -> RequestError:
    text = f"{what} is required, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    return RequestError(Code.INVALID_API_KEY, text)
