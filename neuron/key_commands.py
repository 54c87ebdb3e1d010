"""`neuron keygen`, `neuron rotate` and `neuron invite`: this host's key, the next one, and a gateway's way in."""

import argparse
import socket
import time
from pathlib import Path

from common.endpoint import Endpoint, parse_endpoint
from common.errors import ConfigError
from common.keys import KeyPair, fingerprint, make_pair, read_pair
from neuron.broker.authorized import KEY_FILE, NEXT_KEY_FILE
from neuron.broker.invitations import INVITATIONS_FILE, invite
from neuron.settings import NeuronSettings, load_settings

COMMANDS = {
    "keygen": "make this host's key, or show it",
    "rotate": "make the next key; with --finish exchange the key for it",
    "invite": "print the line with which a gateway joins",
}
INVITATION_S = 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options to the program's own."""
    text = "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    parser.add_argument("command", nargs="?", choices=tuple(COMMANDS), help=text)
    parser.add_argument("--finish", action="store_true", help="rotate: the gateways know the next key; take it")
    parser.add_argument("--address", metavar="HOST:PORT", help="invite: where gateways reach this host")


def run(arguments: argparse.Namespace) -> int:
    """Carry out a command. Raises ConfigError."""
    settings = load_settings(arguments.config)
    folder = arguments.config.resolve().parent / settings.keys_dir
    match arguments.command:
        case "rotate":
            _finish(folder, settings.name) if arguments.finish else _begin(folder, settings.name)
        case "invite":
            print(_invite(folder, settings, arguments.address))
        case _:
            pair = _own(folder)
            print(f"{folder / KEY_FILE}: {fingerprint(pair.public)}")
            print(f"on each gateway: cortex trust {settings.name} {pair.public.hex()}")
    return 0


def _own(folder: Path) -> KeyPair:
    path = folder / KEY_FILE
    return read_pair(path) if path.exists() else make_pair(path)


def _begin(folder: Path, name: str) -> None:
    if not (folder / KEY_FILE).exists():
        raise ConfigError(f"{folder / KEY_FILE}: there is no key yet; run `neuron keygen`")
    path = folder / NEXT_KEY_FILE
    pair = read_pair(path) if path.exists() else make_pair(path)
    print(f"{path}: {fingerprint(pair.public)}")
    print(f"on each gateway: cortex trust {name} {pair.public.hex()} --also")
    print("then here: neuron rotate --finish")


def _finish(folder: Path, name: str) -> None:
    path, following = folder / KEY_FILE, folder / NEXT_KEY_FILE
    if not following.exists():
        raise ConfigError(f"{following}: there is no next key; run `neuron rotate` first")
    pair = read_pair(following)
    try:
        following.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    print(f"{path}: {fingerprint(pair.public)}; a running neuron takes it within a second")
    print(f"then on each gateway: cortex trust {name} {pair.public.hex()} --replace")


def _invite(folder: Path, settings: NeuronSettings, address: str | None) -> str:
    where = parse_endpoint(address, "--address") if address is not None else _address(settings.endpoint)
    line = f"cortex join {settings.name} {where}"
    if settings.is_plain:
        return line
    invitation = invite(folder / INVITATIONS_FILE, time.time(), INVITATION_S)
    return f"{line} {_own(folder).public.hex()} {invitation.secret.hex()}"


def _address(listen: Endpoint) -> Endpoint:
    """Return where others are likely to find a neuron that listens there."""
    is_any = listen.host in ("0.0.0.0", "[::]")
    return Endpoint(socket.getfqdn(), listen.port) if is_any else listen
