"""api_keys.json beside the configuration: written by `cortex keys`, read by every gateway process."""

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from common.errors import ConfigError
from cortex.access.keys import ApiKey, KeyRing, Limits, Role, decode_entry, digest, encode_entry, spell

log = logging.getLogger("cortex")

NAME = "api_keys.json"
MAX_KEYS = 1024
"""Bounds the memory that counts their use."""


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[dict[str, Any]]
    version: Literal[1] = 1


def key_file(config_file: Path) -> Path:
    """Return where the keys of a configuration are."""
    return config_file.resolve().parent / NAME


def read_keys(path: Path) -> KeyRing:
    """Read the file; none means no keys. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return KeyRing()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return KeyRing(map(decode_entry, msgspec.json.decode(data, type=_Content).keys))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; it is written by `cortex keys`") from None


def create_key(
    path: Path, now: float, *, comment: str, role: Role, models: list[str] | None, limits: Limits
) -> tuple[ApiKey, str]:
    """Make a key; return its entry, and the key itself, which is written down nowhere. Raises ConfigError."""
    with _changing(path) as keys:
        taken = {k.row for k in keys}
        row = next((r for r in range(MAX_KEYS) if r not in taken), None)
        if row is None:
            raise ConfigError(f"{path}: holds {MAX_KEYS} keys; forget revoked ones: cortex keys revoke ID --forget")
        id = secrets.token_hex(4)
        while any(k.id == id for k in keys):
            id = secrets.token_hex(4)
        text = spell(id, secrets.token_hex(24))
        entry = ApiKey(
            id=id,
            hash=digest(text),
            row=row,
            created_at=int(now),
            comment=comment,
            role=role,
            models=models,
            limits=limits,
        )
        keys.append(entry)
    return entry, text


def revoke_key(path: Path, id: str, now: float, *, forget: bool = False) -> None:
    """End a key for good; `forget`: also strike out its entry. Raises ConfigError where there is none."""

    def change(key: ApiKey) -> ApiKey | None:
        return None if forget else msgspec.structs.replace(key, revoked_at=key.revoked_at or int(now))

    _change(path, id, change)


def rotate_key(path: Path, id: str, now: float, *, keep_s: float) -> str:
    """Give a key a new secret and return it whole; the old one is valid for `keep_s` more. Raises ConfigError."""
    text = spell(id, secrets.token_hex(24))

    def change(key: ApiKey) -> ApiKey:
        if key.revoked_at is not None:
            raise ConfigError(f"{path}: key {id} is revoked; make another: cortex keys create")
        old_until = int(now + keep_s)
        return msgspec.structs.replace(key, hash=digest(text), old_hash=key.hash, old_until=old_until)

    _change(path, id, change)
    return text


def _change(path: Path, id: str, change: Callable[[ApiKey], ApiKey | None]) -> None:
    with _changing(path) as keys:
        index = next((i for i, k in enumerate(keys) if k.id == id), None)
        if index is None:
            raise ConfigError(f"{path}: there is no key {id}; see: cortex keys list")
        changed = change(keys[index])
        keys[index : index + 1] = [] if changed is None else [changed]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    """Hand out the entries; what has become of them is written, unless an error is raised. One at a time."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            keys = read_keys(path).entries()
            yield keys
            _write(path, msgspec.json.format(msgspec.json.encode(_Content(list(map(encode_entry, keys)))), indent=1))
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    # Hashes need no secrecy against guessing, but who has keys, and with which limits, is nobody else's business.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb") as file:
        # The service must be able to read what root writes: a new file belongs to whom its folder does.
        status = (path if path.exists() else path.parent).stat()
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class WatchedKeys:
    """The keys of a file that may change; a file that is gone or broken leaves those in force that were."""

    def __init__(self, path: Path) -> None:
        """Raise ConfigError if the file is there and unusable."""
        self._path = path
        self._seen = self._look()
        self.ring = self._read()

    def refresh(self) -> bool:
        """Read the file again if it has changed; say whether the keys in force are others now."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            if seen is None:
                raise ConfigError(f"{self._path}: is gone")
            self.ring = self._read()
        except ConfigError as error:
            log.error("the keys in force stay: %s", error)
            return False
        return True

    def _read(self) -> KeyRing:
        ring = read_keys(self._path)
        for key in ring.entries():
            if key.later:
                names = ", ".join(sorted(key.later))
                log.warning("%s: key %s is refused: this gateway does not know its %s", self._path, key.id, names)
        return ring

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
