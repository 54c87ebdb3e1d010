"""Invitations of gateways: a key pair that is good for one Join and for a while. Its secret half is what is pasted.

A line of the file: public key, and when it ends in seconds since 1970.
"""

from pathlib import Path

from common.errors import ConfigError
from common.key_files import read_lines, write_lines
from common.keys import KeyPair, new_pair, parse_key

INVITATIONS_FILE = "invitations"


def read_invitations(path: Path) -> dict[str, float]:
    """Return the end of each invitation by its public key (hexadecimal), the ended ones too. Raises ConfigError."""
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise ConfigError(f"{path}:{number}: must be: PUBLIC-KEY SECONDS-SINCE-1970")
        found[parse_key(words[0], f"{path}:{number}").hex()] = float(words[1])
    return found


def invite(path: Path, now: float, lasts_s: float) -> KeyPair:
    """Write another invitation and return its key pair; those that have ended are struck out. Raises ConfigError."""
    pair = new_pair()
    _write(path, {**read_invitations(path), pair.public.hex(): now + lasts_s}, now)
    return pair


def use_up(path: Path, key: str, now: float) -> bool:
    """Strike an invitation out; False if it is not there or has ended. Raises ConfigError."""
    found = read_invitations(path)
    if found.pop(key, 0.0) <= now:
        return False
    _write(path, found, now)
    return True


def _write(path: Path, invitations: dict[str, float], now: float) -> None:
    write_lines(path, [f"{key} {int(end)}" for key, end in invitations.items() if end > now])
