"""What `neuronctl doctor` and `cortex doctor` find, and how it is shown."""

import errno
import socket
from collections.abc import Sequence
from typing import Literal, NamedTuple

import orjson
from rich.markup import escape

from common import __version__, tables
from common.endpoint import Endpoint

_MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failure": "[red]FAILURE[/]"}


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "warning", "failure"]
    subject: str
    text: str
    remedy: str = ""


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings; return the number of failures."""
    failures = sum(f.level == "failure" for f in findings)
    if as_json:
        print(orjson.dumps([f._asdict() for f in findings], option=orjson.OPT_INDENT_2).decode())
        return failures
    out = tables.console()
    for f in findings:
        out.print(f"{_MARKS[f.level]}  {escape(f.subject)}: {escape(f.text)}", soft_wrap=True)
        if f.remedy:
            out.print(f"         {escape(f.remedy)}", soft_wrap=True)
    return failures


def check_port(subject: str, endpoint: Endpoint, program: str) -> Finding:
    """Say whether a daemon that is not running could listen there."""
    family = socket.AF_INET6 if endpoint.host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host.strip("[]"), endpoint.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                remedy = f"find it with: ss -tlnp sport = :{endpoint.port}; end it, or choose another port"
                return Finding("failure", subject, f"{endpoint} is taken by a program that is no {program}", remedy)
            remedy = "it must be an address of this host, or 0.0.0.0 for all; ports below 1024 need rights"
            return Finding("failure", subject, f"{endpoint}: {error.strerror or error}", remedy)
    remedy = f"start it: systemctl start {program}; why it ended: journalctl -u {program}"
    return Finding("warning", subject, f"no {program} runs here; {endpoint} is free", remedy)


def check_version(subject: str, other: str) -> Finding:
    """Compare another program's version with this one's."""
    if other == __version__:
        return Finding("ok", subject, f"version {other}")
    remedy = "update the older of the two, then restart it"
    return Finding("warning", subject, f"is version {other}, this program {__version__}", remedy)
