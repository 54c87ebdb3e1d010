"""Which build of this program it is: the version, and the revision of the source where that is known."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

from common import __version__

_ARCHIVED = "$Format:%h$"
"""`git archive` puts the revision here (.gitattributes: export-subst)."""


def describe(program: str) -> str:
    """Return the line that --version prints."""
    revision = _checked_out() if _ARCHIVED.startswith("$") else _ARCHIVED
    return f"{program} {__version__}" + (f" ({revision})" if revision else "")


def _checked_out() -> str:
    """Return the revision of the checkout this runs from; empty: it runs from none, or git cannot tell."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class ShowVersion(argparse.Action):
    """--version, asked of git only when it is wanted."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and the revision, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        print(describe(parser.prog))
        parser.exit()
