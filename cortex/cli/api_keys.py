"""`cortex keys`: who may use the gateway, and how much of it. Works on the file that the gateway watches."""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import orjson

from common import tables
from cortex.access.key_file import create_key, key_file, read_keys, revoke_key, rotate_key
from cortex.access.keys import ApiKey, Limits, Role, encode_entry, read_id
from cortex.settings import load_settings

_LIMITS = {
    "concurrent": "requests at a time",
    "requests_per_minute": "requests in any 60 seconds",
    "tokens_per_minute": "tokens of prompts and answers in any 60 seconds",
    "tokens_per_day": "tokens of prompts and answers from midnight UTC",
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", config_help: str) -> None:
    """Add the commands to the command line's grammar."""
    text = "make, list, revoke and rotate API keys"
    keys = commands.add_parser("keys", help=text, description=text.capitalize() + ".")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")

    create = actions.add_parser("create", help="make a key, and print it once", description="Make a key and print it.")
    create.add_argument("--comment", default="", metavar="TEXT", help="whose it is, or what for")
    create.add_argument("--role", choices=get_args(Role), default="use", help="default: use")
    create.add_argument("--model", action="append", metavar="ID", help="only for this model; may be repeated")
    for name, meaning in _LIMITS.items():
        create.add_argument("--" + name.replace("_", "-"), type=_count, metavar="N", help=meaning)

    listing = actions.add_parser("list", help="ids, roles, limits", description="List the keys, never their secrets.")
    listing.add_argument("--all", action="store_true", help="also those that are revoked")
    listing.add_argument("--json", action="store_true", help="print JSON")

    revoke = actions.add_parser("revoke", help="end a key", description="End a key; its requests are ended, too.")
    revoke.add_argument("--forget", action="store_true", help="strike it out of the list as well")
    rotate = actions.add_parser(
        "rotate", help="give a key a new secret", description="Give a key a new secret, and print it once."
    )
    rotate.add_argument(
        "--keep", type=_seconds, default=0, metavar="TIME", help="the old one is valid so long: 90s, 2h"
    )
    for action in (revoke, rotate):
        action.add_argument("id", metavar="ID", help="as list shows it")
    for action in (create, listing, revoke, rotate):
        action.add_argument("--config", type=Path, metavar="FILE", help=config_help)


def run(arguments: argparse.Namespace, config: Path) -> int:
    """Do what was asked; return the exit status. Raises ConfigError."""
    settings, path, now = load_settings(config), key_file(config), time.time()
    match arguments.action:
        case "create":
            limits = Limits(**{name: getattr(arguments, name) for name in _LIMITS})
            is_first = not read_keys(path)
            entry, text = create_key(
                path, now, comment=arguments.comment, role=arguments.role, models=arguments.model, limits=limits
            )
            print(text)
            _say(f"key {entry.id} is valid within two seconds; it is shown this once")
            if is_first and settings.access.anonymous is None:
                _say(f"from now on a key is required; to let others in: access.anonymous = true in {config}")
        case "list":
            entries = [k for k in read_keys(path).entries() if arguments.all or k.revoked_at is None]
            _show(entries, as_json=arguments.json)
        case "revoke":
            revoke_key(path, _bare(arguments.id), now, forget=arguments.forget)
            _say(f"key {_bare(arguments.id)} is refused within two seconds")
        case "rotate":
            print(rotate_key(path, _bare(arguments.id), now, keep_s=arguments.keep))
            _say(f"the old one is valid for {arguments.keep} s more" if arguments.keep else "the old one is refused")
    return 0


def _bare(id: str) -> str:
    """Return the id also where somebody pastes the whole key, or the name that logs give it."""
    return read_id(id) or id.removeprefix("key:")


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # so that the key alone can be piped


def _show(entries: list[ApiKey], *, as_json: bool) -> None:
    if as_json:
        rows: list[dict[str, Any]] = [encode_entry(k) for k in entries]
        for row in rows:
            del row["hash"]
            row.pop("old_hash", None)
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    tables.show(
        ("ID", "ROLE", "MADE", "MODELS", "LIMITS", "COMMENT"),
        [(k.id, _role(k), _day(k.created_at), ", ".join(k.models or ["all"]), _limits(k), k.comment) for k in entries],
    )


def _role(key: ApiKey) -> str:
    if key.later and key.revoked_at is None:
        return f"{key.role}, refused: of a newer gateway"
    return key.role if key.revoked_at is None else f"{key.role}, revoked {_day(key.revoked_at)}"


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _limits(key: ApiKey) -> str:
    known: dict[str, int] = msgspec.to_builtins(key.limits)
    return ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in known.items()) or "none"


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1")
    return number


def _seconds(text: str) -> int:
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is no time; one is 90s, 15m, 2h or 1d")
    return int(number) * _UNITS[unit]
