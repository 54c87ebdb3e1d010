"""neuronctl's commands about the keys of this host: authorize, revoke, keys. A neuron rereads the files."""

import argparse
from pathlib import Path

import orjson

from common.errors import ConfigError, HelexaError
from common.keys import fingerprint, read_pair
from neuron.broker.authorized import AUTHORIZED_FILE, KEY_FILE, ROLES, authorize, read_authorized, revoke
from neuron.ctl.client import NeuronClient
from neuron.ctl.disk import DEFAULT_CONFIG
from neuron.settings import load_settings


def add_authorize(parser: argparse.ArgumentParser) -> None:
    """Add the options of authorize."""
    parser.add_argument("role", choices=ROLES, help="gateway: all; admin: all but jobs; observer: only look")
    parser.add_argument("key", metavar="KEY", help="public key, as `cortex keygen` prints it")
    parser.add_argument("comment", nargs="?", default="", help="whose it is")
    add_config(parser)


def add_revoke(parser: argparse.ArgumentParser) -> None:
    """Add the options of revoke."""
    parser.add_argument("key", metavar="KEY", help="public key, as `neuronctl keys` prints it")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which neuron."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"the neuron's file (default: {DEFAULT_CONFIG})")


def run_authorize(_: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Let a key in, or give it another role. Raises ConfigError."""
    file = keys_dir(arguments.config) / AUTHORIZED_FILE
    authorize(file, arguments.role, arguments.key, arguments.comment)
    _say({"authorized": arguments.key, "role": arguments.role}, f"{file}: {arguments.role} {arguments.key}", as_json)


def run_revoke(_: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Let a key in no more. Raises ConfigError, and HelexaError if it is not there."""
    file = keys_dir(arguments.config) / AUTHORIZED_FILE
    if not revoke(file, arguments.key):
        raise HelexaError(f"{file}: there is no key {arguments.key}")
    _say({"revoked": arguments.key}, f"{file}: revoked {arguments.key}", as_json)


def run_keys(_: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Show this neuron's key and those it lets in. Raises ConfigError."""
    folder = keys_dir(arguments.config)
    own = read_pair(folder / KEY_FILE).public
    roles = read_authorized(folder / AUTHORIZED_FILE)
    text = [f"neuron    {own.hex()}  {fingerprint(own)}"]
    text += [f"{role:<9} {key}  {fingerprint(bytes.fromhex(key))}" for key, role in roles.items()]
    _say({"neuron": own.hex(), "authorized": roles}, "\n".join(text), as_json)


def keys_dir(config: Path | None) -> Path:
    """Return the folder of a neuron's keys. Raises ConfigError."""
    config = config or DEFAULT_CONFIG
    if not config.is_file():
        raise ConfigError(f"{config}: does not exist; use --config FILE")
    return config.resolve().parent / load_settings(config).keys_dir


def _say(data: object, text: str, as_json: bool) -> None:
    print(orjson.dumps(data).decode() if as_json else text)
