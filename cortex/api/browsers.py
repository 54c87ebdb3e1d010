"""What a page in somebody's browser may do: a page of any site can have its visitors' browsers send requests here.

A browser says in `Origin` whose page sends a request. Whoever shows a key is no such page, since keys are sent by hand
and never by cookie. Without a key only pages of ours are let in: those that come from the address that is asked. That
address itself must be one that is known to be ours, because a name of the attacker's may be made to point here (DNS
rebinding): a number, localhost, this host's own name, or one of `browsers.hosts`.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

from common.errors import Code, RequestError

METHODS = "GET, HEAD, POST, OPTIONS"
MAX_AGE_S = 600
"""How long a browser may remember what is allowed."""
EXPOSED = "x-request-id, retry-after"
_ORIGIN = re.compile(r"https?://(?P<authority>[^/]+)", re.IGNORECASE)

Headers = list[tuple[bytes, bytes]]


class Browsers:
    """Decides by the headers Host and Origin."""

    def __init__(self, hosts: Iterable[str] | None, origins: Iterable[str], own: Iterable[str] = ()) -> None:
        """`hosts`: the only names to answer to, None: any. `origins`: whose pages may ask. `own`: this host's names."""
        self._hosts = None if hosts is None else frozenset(h.lower() for h in hosts)
        self._origins = frozenset(o.lower().rstrip("/") for o in origins)
        self._own = frozenset(n.lower() for n in own if n) | (self._hosts or frozenset())

    def check_host(self, headers: Headers) -> None:
        """Raise RequestError for a request to a name that is not among those to answer to."""
        if self._hosts is not None and not self._is_ours(_find(headers, b"host")):
            raise RequestError(Code.PERMISSION_DENIED, "this gateway does not answer to the name in the header Host")

    def check_page(self, headers: Headers) -> None:
        """Raise RequestError for a request without a key that a page of others sends."""
        origin = _find(headers, b"origin")
        if origin is None or self.allows(origin):
            return
        match = _ORIGIN.fullmatch(origin)
        host = _find(headers, b"host") or ""
        if match is not None and match["authority"].lower() == host.lower() and self._is_ours(host):
            return
        text = "without a key, pages may ask only from this gateway's own address or from browsers.origins"
        if match is not None and match["authority"].lower() == host.lower():
            text = (
                "without a key, pages may ask only by addresses that are known: add this one's name to browsers.hosts"
            )
        raise RequestError(Code.PERMISSION_DENIED, text)

    def allows(self, origin: str) -> bool:
        """Say whether the pages of an origin may ask, and read the answers."""
        return "*" in self._origins or origin.lower() in self._origins

    def answer_headers(self, headers: Headers) -> Headers:
        """Return what an answer tells the browser; nothing where nobody's pages are let in."""
        if not self._origins:
            return []
        varies: Headers = [(b"vary", b"Origin")]
        origin = _find(headers, b"origin")
        if origin is None or not self.allows(origin):
            return varies
        allowed = b"*" if "*" in self._origins else origin.encode("latin-1")
        return [
            *varies,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]

    def preflight(self, method: str, headers: Headers) -> Headers | None:
        """Return the headers of the answer to a browser that asks before it sends a request; None: it is no such."""
        origin = _find(headers, b"origin")
        asks = method == "OPTIONS" and _find(headers, b"access-control-request-method") is not None
        if not asks or origin is None or not self.allows(origin):
            return None
        wanted = _find(headers, b"access-control-request-headers") or ""
        return [
            *self.answer_headers(headers),
            (b"access-control-allow-methods", METHODS.encode()),
            (b"access-control-allow-headers", wanted.encode("latin-1")),
            (b"access-control-max-age", str(MAX_AGE_S).encode()),
        ]

    def _is_ours(self, host: str | None) -> bool:
        name = _name(host or "")
        return name in self._own or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def own_names() -> set[str]:
    """Return the names of this host that need no look-up."""
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], name.partition(".")[0] + ".local"}


def _find(headers: Headers, wanted: bytes) -> str | None:
    return next((value.decode("latin-1").strip() for name, value in headers if name == wanted), None)


def _name(host: str) -> str:
    """Return a Host without its port."""
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
