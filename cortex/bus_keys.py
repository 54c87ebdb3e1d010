"""The gateway's key and the neurons' keys it has accepted: cortex.key and known_neurons beside the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.keys import Credentials, KeyPair, parse_key, read_pair

KEY_FILE = "cortex.key"
KNOWN_FILE = "known_neurons"


@dataclass(frozen=True, slots=True)
class BusKeys:
    """Empty where all neurons speak plain text."""

    pair: KeyPair | None = None
    known: Mapping[str, bytes] = field(default_factory=dict)
    """Public keys by the neurons' names."""

    def credentials(self, neuron: str) -> Credentials | None:
        """Return what it takes to speak to a neuron; None: plain text, since no key of it is known."""
        key = self.known.get(neuron)
        return None if key is None or self.pair is None else Credentials(self.pair, key)


def read_bus_keys(config_file: Path) -> BusKeys:
    """Read both files where they exist. Raises ConfigError."""
    folder = config_file.resolve().parent
    known = read_known(folder / KNOWN_FILE)
    key = folder / KEY_FILE
    if known and not key.exists():
        raise ConfigError(f"{key}: is missing, and {folder / KNOWN_FILE} names neurons with keys; run `cortex keygen`")
    return BusKeys(read_pair(key) if known else None, known)


def read_known(path: Path) -> dict[str, bytes]:
    """Read lines of name and public key. Raises ConfigError."""
    known = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ConfigError(f"{path}:{number}: must be: NAME PUBLIC-KEY")
        known[words[0]] = parse_key(words[1], f"{path}:{number}")
    return known


def trust(path: Path, name: str, key: bytes, *, replace: bool) -> None:
    """Accept a neuron's key. Raises ConfigError where another one was accepted before, unless `replace`."""
    known = read_known(path)
    if known.get(name, key) != key and not replace:
        raise ConfigError(
            f"{path}: neuron {name} had another key, {known[name].hex()}. If it was made anew on that host, accept it: "
            f"cortex trust {name} {key.hex()} --replace"
        )
    lines = [line for line in _text(path).splitlines() if line.split()[:1] != [name]]
    new = path.with_name(path.name + ".new")
    try:
        new.write_text("".join(f"{line}\n" for line in [*lines, f"{name} {key.hex()}"]), encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
