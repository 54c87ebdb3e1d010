"""Keys of the bus (CURVE25519): pairs in files, public ones as 64 hexadecimal digits.

ZeroMQ's own spelling, Z85, has characters that shells and YAML take for their own.
"""

import base64
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from common.errors import ConfigError
from common.key_files import make_folder

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What proves who somebody is. Both halves are 32 bytes."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer needs to speak to one neuron."""

    pair: KeyPair
    neuron: bytes
    """The neuron's public key; another one at that address is not spoken to."""


def parse_key(text: str, origin: str) -> bytes:
    """Return the public key that a text spells. Raises ConfigError, naming `origin`."""
    if not _KEY.fullmatch(text.lower()):
        raise ConfigError(f"{origin}: '{text}' is not a public key; one has 64 hexadecimal digits")
    return bytes.fromhex(text)


def fingerprint(public: bytes) -> str:
    """Return what people compare, in the way of OpenSSH."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def new_pair() -> KeyPair:
    """Return a key pair that is in no file."""
    public, secret = (z85.decode(key) for key in zmq.curve_keypair())
    return KeyPair(public, secret)


def pair_of(secret: bytes) -> KeyPair:
    """Return the pair that a secret key, 32 bytes, belongs to."""
    return KeyPair(z85.decode(zmq.curve_public(z85.encode(secret))), secret)


def make_pair(path: Path) -> KeyPair:
    """Make a key pair in a new file, for its owner only. Raises ConfigError where there is one.

    What root makes in the folder of a service, such as /etc/neuron, is for that service's group too, or it could not
    read its own key.
    """
    pair = new_pair()
    try:
        make_folder(path.parent)
        group = path.parent.stat().st_gid if os.geteuid() == 0 else 0
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            if group:
                os.fchown(file.fileno(), -1, group)
                os.fchmod(file.fileno(), 0o640)
            file.write(pair.secret.hex() + "\n")
    except FileExistsError:
        raise ConfigError(f"{path}: there is a key already; remove the file to make another") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return read_pair(path)


def read_pair(path: Path) -> KeyPair:
    """Read a key pair. Raises ConfigError if it is unusable, or others may read it."""
    try:
        status = path.stat()
        is_for_a_service = status.st_uid == 0 and status.st_gid != 0
        if stat.S_IMODE(status.st_mode) & (0o037 if is_for_a_service else 0o077):
            raise ConfigError(f"{path}: a secret key must not be readable by others; run: chmod 600 {path}")
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not _KEY.fullmatch(text):
        raise ConfigError(f"{path}: holds no secret key of 64 hexadecimal digits")
    return pair_of(bytes.fromhex(text))
