"""TLS of the API: a certificate and its key from files, taken anew when they change."""

import contextlib
import logging
import ssl
import stat
from pathlib import Path

from common.errors import ConfigError

log = logging.getLogger("cortex")

_Seen = tuple[tuple[int, int, int], ...]


class Certificate:
    """The files, and the context that servers use; connections that are open keep what they began with."""

    def __init__(self, chain: Path, key: Path) -> None:
        """`chain`: PEM, the certificate first. Raises ConfigError where the two cannot be used together."""
        self._chain = chain
        self._key = key
        self._seen = self._look()
        self.context = self._load()

    def refresh(self) -> bool:
        """Take over files that have changed; say whether that was done. Those that do not fit leave all as it is."""
        seen = self._look()
        if not seen or seen == self._seen:
            return False
        self._seen = seen
        try:
            self._load()  # first where nobody is served from: a key that does not fit would leave half a pair behind
            self.context.load_cert_chain(self._chain, self._key, password=_no_password)
        except (ConfigError, OSError) as error:
            # One of two files that are replaced one after the other; the next look finds the other.
            log.warning("the certificate in use stays: %s", error)
            return False
        log.info("certificate taken anew")
        return True

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            if stat.S_IMODE(self._key.stat().st_mode) & 0o007:
                raise ConfigError(f"{self._key}: a secret key must not be readable by all; run: chmod o= {self._key}")
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise ConfigError(f"{self._chain} and {self._key} cannot be used together: {reason}") from None
        except OSError as error:
            raise ConfigError(f"{error.filename or self._chain}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"{self._key}: is encrypted; a service has nobody to ask for its password") from None
        return context

    def _look(self) -> _Seen:
        found = []
        for file in (self._chain, self._key):
            with contextlib.suppress(OSError):
                status = file.stat()  # of what a link leads to: certbot changes links
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(found)


def _no_password() -> str:
    raise ValueError("encrypted")
