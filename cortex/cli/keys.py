"""`cortex keygen` and `cortex trust`: who this gateway is to its neurons, and who they are."""

import argparse
from pathlib import Path

from common.errors import ConfigError
from common.keys import fingerprint, make_pair, parse_key, read_pair
from cortex.bus_keys import KEY_FILE, KNOWN_FILE, Beside, read_known, trust
from cortex.settings import load_settings


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", config_help: str) -> None:
    """Add both commands."""
    text = "make this gateway's key, or show it"
    keygen = commands.add_parser("keygen", help=text, description=text.capitalize() + ".")
    accept = commands.add_parser(
        "trust",
        help="accept a neuron's key, or show it",
        description="Store a neuron's public key beside the configuration; no other is accepted at its address.",
    )
    accept.add_argument("name", metavar="NAME", help="as the configuration names it")
    accept.add_argument(
        "key",
        metavar="KEY",
        nargs="?",
        help="as `neuron keygen` prints it on that host; without: show what is accepted",
    )
    others = accept.add_mutually_exclusive_group()
    others.add_argument("--replace", action="store_true", help="instead of the key that was accepted before")
    others.add_argument("--also", action="store_true", help="beside it: that host is about to take its next key")
    for command in (keygen, accept):
        command.add_argument("--config", type=Path, metavar="FILE", help=config_help)


def run_keygen(config: Path) -> int:
    """Make the key if there is none; print what a neuron needs to be told."""
    path = config.resolve().parent / KEY_FILE
    pair = read_pair(path) if path.exists() else make_pair(path)
    print(f"{path}: {fingerprint(pair.public)}\non each neuron: neuronctl authorize gateway {pair.public.hex()} cortex")
    return 0


def run_trust(arguments: argparse.Namespace, config: Path) -> int:
    """Accept a neuron's key, or show the accepted ones. Raises ConfigError."""
    name: str = arguments.name
    names = load_settings(config).neuron_endpoints()
    if name not in names:
        raise ConfigError(f"{config}: there is no neuron {name}; it names {', '.join(names) or 'none'}")
    folder = config.resolve().parent
    if arguments.key is None:
        known = read_known(folder / KNOWN_FILE).get(name, ())
        if not known:
            raise ConfigError(f"no key of neuron {name} is accepted here; `neuron keygen` on that host says what to do")
        for public in known:
            print(f"neuron {name} is {fingerprint(public)}, {public.hex()}")
        return 0
    public = parse_key(arguments.key, "KEY")
    other: Beside = "replace" if arguments.replace else "also" if arguments.also else "nothing"
    trust(folder / KNOWN_FILE, name, public, other=other)
    if not (folder / KEY_FILE).exists():
        run_keygen(config)
    print(f"neuron {name} is {fingerprint(public)}; a running gateway takes that within a second")
    return 0
