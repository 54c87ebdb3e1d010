"""`cortex usage`: what each key has used, from the file that the gateway keeps."""

import argparse
import sqlite3
import time
from pathlib import Path

import orjson

from common import tables
from common.errors import ConfigError
from cortex.access.key_file import key_file, read_keys
from cortex.access.usage import NAME, Row, Used, read_usage
from cortex.settings import load_settings

DAY_S = 86400
INSTALLED = Path("/var/lib/cortex")
"""What $STATE_DIRECTORY is for the unit."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", config_help: str) -> None:
    """Add the command to the command line's grammar."""
    text = "requests and tokens by key"
    command = commands.add_parser("usage", help=text, description=f"Show {text} and model; days are UTC.")
    command.add_argument(
        "--days", type=int, default=1, metavar="N", help="the last so many, today included; default: 1"
    )
    command.add_argument("--daily", action="store_true", help="each day for itself")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--config", type=Path, metavar="FILE", help=config_help)


def run(arguments: argparse.Namespace, config: Path) -> int:
    """Print the table; return the exit status. Raises ConfigError."""
    folder = load_settings(config).gateway.state_folder or INSTALLED
    comments = {k.id: k.comment for k in read_keys(key_file(config)).entries()}
    try:
        rows = read_usage(folder / NAME, time.time() - (max(1, arguments.days) - 1) * DAY_S)
    except sqlite3.Error as error:
        remedy = "usage is kept where gateway.state_dir says, or StateDirectory of the unit"
        raise ConfigError(f"{folder / NAME}: {error}; {remedy}") from None
    if not arguments.daily:
        rows = _sum_up(rows)
    if arguments.json:
        found = [{"day": r.day, "key": r.key, "model": r.model, **r.used._asdict()} for r in rows]
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return 0
    numbers = ("REQUESTS", "PROMPT", "CACHED", "COMPLETION")
    lines = [(r.day, r.key, comments.get(r.key, ""), r.model, *map(str, r.used)) for r in rows]
    columns = ("DAY", "KEY", "COMMENT", "MODEL", *numbers)
    first = 0 if arguments.daily else 1
    tables.show(columns[first:], [line[first:] for line in lines], right=numbers)
    return 0


def _sum_up(rows: list[Row]) -> list[Row]:
    sums: dict[tuple[str, str], Used] = {}
    first = min((r.day for r in rows), default="")
    for row in rows:
        sums[row.key, row.model] = sums.get((row.key, row.model), Used()) + row.used
    return [Row(first, key, model, used) for (key, model), used in sorted(sums.items())]
