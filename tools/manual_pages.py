"""Write the manual pages of all programs into a folder, from their own command lines."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import __version__  # noqa: E402
from cortex.__main__ import build_parser as cortex  # noqa: E402
from cortex.acp.__main__ import build_parser as helexa_acp  # noqa: E402
from neuron.__main__ import build_parser as neuron  # noqa: E402
from neuron.ctl.__main__ import build_parser as neuronctl  # noqa: E402

SECTION = 1
PARSERS = {"cortex": cortex, "helexa-acp": helexa_acp, "neuron": neuron, "neuronctl": neuronctl}
FILES = {
    "cortex": [
        "/etc/cortex/cortex.toml or cortex.yaml",
        "/etc/cortex/models.yaml or models.toml",
        "/etc/cortex/api_keys.json",
    ],
    "helexa-acp": ["~/.config/helexa-acp/config.toml"],
    "neuron": ["/etc/neuron/neuron.yaml", "/etc/neuron/models.yaml or models.toml", "/var/lib/neuron/models"],
    "neuronctl": [],
}


def render(program: str) -> str:
    """Return the page of one program, in man(7)."""
    parser = PARSERS[program]()
    lines = [
        f'.TH {program.upper()} {SECTION} "" "helexa {__version__}" "User commands"',
        ".SH NAME",
        f"{program} \\- {_text((parser.description or '').rstrip('.'))}",
        ".SH SYNOPSIS",
        *_literal(parser.format_usage().removeprefix("usage: ")),
        ".SH OPTIONS",
        *_options(parser),
    ]
    commands = list(_commands(parser, ""))
    if commands:
        lines += [".SH COMMANDS", *commands]
    lines += [".SH NOTES", *_literal(parser.epilog or "")]
    if FILES[program]:
        lines += [".SH FILES", *(entry for file in FILES[program] for entry in (".TP", f".I {_text(file)}"))]
    others = sorted(set(PARSERS) - {program})
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{other}\\fR({SECTION})" for other in others)]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    """Yield each command, followed by those below it."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, sub in action.choices.items():
            yield f".SS {_text(prefix + name)}"
            yield _text(sub.description or "")
            yield from _literal(sub.format_usage()[7:])
            yield from _options(sub)
            yield from _commands(sub, f"{prefix}{name} ")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        value = "" if action.nargs == 0 else _value(action)
        names = ", ".join(action.option_strings)
        yield ".TP"
        yield f"\\fB{_text(names)}\\fR \\fI{_text(value)}\\fR" if names else f"\\fI{_text(value)}\\fR"
        yield _text(_help(parser, action))


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _text(text: str) -> str:
    """Return text as it stands, none of it taken for a request of roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def _literal(text: str) -> Iterator[str]:
    yield ".nf"
    yield from map(_text, text.rstrip().splitlines())
    yield ".fi"


def main() -> None:
    """Write the pages into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for program in PARSERS:
        (folder / f"{program}.{SECTION}").write_text(render(program), encoding="utf-8")


if __name__ == "__main__":
    main()
