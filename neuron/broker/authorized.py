"""authorized_keys: whose messages a neuron takes, and which. One key a line: role, public key, comment."""

import os
from pathlib import Path
from typing import Literal, get_args

from common import messages
from common.errors import ConfigError
from common.keys import parse_key

Role = Literal["gateway", "admin", "observer"]
ROLES: tuple[str, ...] = get_args(Role)

_LOOK = frozenset(
    {messages.Hello, messages.Status, messages.Discover, messages.Health, messages.Models, messages.Effective,
     messages.Memory, messages.ReadEvents, messages.Version}
)  # fmt: skip
_WORK = frozenset({messages.Submit, messages.Abort, messages.Claim, messages.Beat})
ALLOWED: dict[str, frozenset[type]] = {
    "gateway": frozenset(messages.ToNeuron.__args__),
    "admin": frozenset(messages.ToNeuron.__args__) - _WORK,
    "observer": _LOOK,
}
"""By role: the kinds of messages that are taken. A gateway's admins steer through it, so it may do all."""


def read_authorized(path: Path) -> dict[str, Role]:
    """Return the role of each public key (hexadecimal); no file means nobody. Raises ConfigError."""
    roles: dict[str, Role] = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        origin = f"{path}:{number}"
        if words[0] not in ROLES or len(words) < 2:
            raise ConfigError(f"{origin}: must be: {'|'.join(ROLES)} PUBLIC-KEY [COMMENT]")
        roles[parse_key(words[1], origin).hex()] = words[0]  # type: ignore[assignment]
    return roles


def authorize(path: Path, role: str, key: str, comment: str) -> None:
    """Add a key, or give it another role. Raises ConfigError."""
    key = parse_key(key, "KEY").hex()
    if "\n" in comment:
        raise ConfigError("COMMENT: must be one line")
    read_authorized(path)  # a file with a mistake is not made longer
    lines = [line for line in _lines(path) if key not in line.lower().split()[1:2]]
    _write(path, [*lines, f"{role} {key} {comment}".rstrip()])


def revoke(path: Path, key: str) -> bool:
    """Strike a key out; False if it is not there. Raises ConfigError."""
    key = parse_key(key, "KEY").hex()
    lines = _lines(path)
    left = [line for line in lines if key not in line.lower().split()[1:2]]
    if len(left) == len(lines):
        return False
    _write(path, left)
    return True


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None


def _write(path: Path, lines: list[str]) -> None:
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if path.exists():
            status = path.stat()
            os.chmod(new, status.st_mode & 0o777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(new, status.st_uid, status.st_gid)
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
