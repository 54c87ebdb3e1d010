"""The gateway's key and the neurons' keys it has accepted: cortex.key and known_neurons beside the configuration."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from common.errors import ConfigError
from common.key_files import read_lines, stamp, write_lines
from common.keys import Credentials, KeyPair, parse_key, read_pair

log = logging.getLogger(__name__)

KEY_FILE = "cortex.key"
KNOWN_FILE = "known_neurons"

Beside = Literal["nothing", "also", "replace"]
"""What becomes of another key that was accepted before: it is in the way, stays beside the new one, or goes."""


@dataclass(frozen=True, slots=True)
class BusKeys:
    """Empty where all neurons speak plain text."""

    pair: KeyPair | None = None
    known: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """Public keys by the neurons' names: one, and while it is being rotated the next one too."""

    def credentials(self, neuron: str) -> tuple[Credentials, ...]:
        """Return what it takes to speak to a neuron; none: plain text, since no key of it is known."""
        pair = self.pair
        return () if pair is None else tuple(Credentials(pair, key) for key in self.known.get(neuron, ()))


class WatchedBusKeys:
    """The keys of files that may change; a file that is gone or broken leaves those in force that were."""

    def __init__(self, config_file: Path) -> None:
        """Raise ConfigError if a file is there and unusable."""
        self._config_file = config_file
        folder = config_file.resolve().parent
        self._files = (folder / KNOWN_FILE, folder / KEY_FILE)
        self._seen = self._look()
        self.keys = read_bus_keys(config_file)

    def refresh(self) -> bool:
        """Read the files again if they have changed; say whether the keys in force are others now."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        known = self._files[0]
        try:
            if seen[0] is None and self.keys.known:
                raise ConfigError(f"{known}: is gone")
            keys = read_bus_keys(self._config_file)
        except ConfigError as error:
            log.error("the keys of neurons stay as they were: %s", error)
            return False
        if self.keys.pair not in (None, keys.pair):
            # A neuron has tied the name of this process to the key that it came with.
            log.warning("%s is another key; only a restart applies that", self._files[1])
            keys = replace(keys, pair=self.keys.pair)
        is_new, self.keys = keys != self.keys, keys
        log.info("%s was read: %d neurons", known, len(keys.known))
        return is_new

    def _look(self) -> tuple[object, object]:
        return stamp(self._files[0]), stamp(self._files[1])


def read_bus_keys(config_file: Path) -> BusKeys:
    """Read both files where they exist. Raises ConfigError."""
    folder = config_file.resolve().parent
    known = read_known(folder / KNOWN_FILE)
    key = folder / KEY_FILE
    if known and not key.exists():
        raise ConfigError(f"{key}: is missing, and {folder / KNOWN_FILE} names neurons with keys; run `cortex keygen`")
    return BusKeys(read_pair(key) if known else None, known)


def read_known(path: Path) -> dict[str, tuple[bytes, ...]]:
    """Read lines of name and public key; of a name that comes twice both are accepted. Raises ConfigError."""
    known: dict[str, tuple[bytes, ...]] = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ConfigError(f"{path}:{number}: must be: NAME PUBLIC-KEY")
        key = parse_key(words[1], f"{path}:{number}")
        before = known.get(words[0], ())
        known[words[0]] = before if key in before else (*before, key)
    return known


def trust(path: Path, name: str, key: bytes, *, other: Beside = "nothing") -> None:
    """Accept a neuron's key. Raises ConfigError where another one was accepted before, unless `other` says more."""
    before = read_known(path).get(name, ())
    if other == "nothing" and before and key not in before:
        raise ConfigError(
            f"{path}: neuron {name} had another key, {before[-1].hex()}. If it was made anew on that host, accept it: "
            f"cortex trust {name} {key.hex()} --replace"
        )
    kept = () if other == "replace" else tuple(k for k in before if k != key)
    if key in before and other == "nothing":
        return
    lines = [line for line in read_lines(path) if line.split()[:1] != [name]]
    write_lines(path, [*lines, *(f"{name} {k.hex()}" for k in (*kept, key))])
