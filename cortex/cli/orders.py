"""`cortex load`, `unload`, `pin`, `drain`, `pause` and the like: orders to the fleet through the gateway."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from common.durations import parse_duration
from cortex.cli.fleet import DONE, FAILED, NO_ANSWER, TIMEOUT_S, connect, explain, explain_silence, trusted

SILENCE_S = 30.0
"""The gateway says something every two seconds."""
HELP = {
    "load": "load a model, by default where the fleet would place it",
    "unload": "finish a model's jobs, then unload it",
    "pin": "never unload a model to make room",
    "unpin": "end a pin",
    "drain": "no new jobs for a node, one of its devices, or a model",
    "undrain": "end a drain",
    "pause": "leave a device to other programs: finish its jobs, unload its models, end its worker",
    "resume": "end a pause, and load again what the device held",
    "restart": "end a device's worker and start another",
}


class _Step(msgspec.Struct, omit_defaults=True):
    node: str
    state: str
    text: str
    fraction: float | None = None


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to the command line's grammar."""
    for verb, text in HELP.items():
        command = commands.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if verb in ("pause", "resume", "restart"):
            command.add_argument("node", metavar="NODE", help="a neuron")
            command.add_argument("device", metavar="UUID", help="its device, as status shows it")
        elif verb in ("drain", "undrain"):
            command.add_argument(
                "node", nargs="?", metavar="NODE", help="a neuron, or with --device one of its devices"
            )
            command.add_argument("--model", help="a model, on NODE or wherever it is known")
        else:
            command.add_argument("model", metavar="MODEL", help="id or alias")
            command.add_argument("--node", metavar="NODE", help="on this neuron only")
        if verb in ("load", "unload", "drain", "undrain"):
            command.add_argument("--device", metavar="UUID", help="on this device only, as status shows it")
        if verb == "load":
            command.add_argument("--replace", action="store_true", default=None,
                                 help="also where it is loaded: with the newest profile")  # fmt: skip
        if verb == "pause":
            command.add_argument("--for", dest="for_s", type=parse_duration, metavar="TIME",
                                 help="for example 90m, 2h, 1d (default: until resume)")  # fmt: skip
        add_gateway(command)


def add_gateway(command: argparse.ArgumentParser) -> None:
    """Add the options that say which gateway is asked."""
    command.add_argument("--url", metavar="URL", help="of the gateway; default: from --config, else this host's")
    command.add_argument("--config", type=Path, metavar="FILE", help="take address and admin key from here")
    command.add_argument("--json", action="store_true", help="print JSON")


def order(verb: str, arguments: argparse.Namespace) -> int:
    """Give an order and print what the neurons say; return the exit status. Raises ConfigError."""
    url, headers = connect(arguments.url, arguments.config)
    wanted = {
        k: v for k in ("model", "node", "device", "replace", "for_s") if (v := getattr(arguments, k, None)) is not None
    }
    limits = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
    try:
        ask = functools.partial(httpx.stream, "POST", json=wanted, headers=headers, verify=trusted(arguments.config))
        with ask(f"{url}/fleet/{verb}", timeout=limits) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                print(f"cortex: {_reason(answer, verb)}", file=sys.stderr)
                return FAILED
            return _follow(answer, verb, as_json=arguments.json)
    except httpx.TransportError as error:
        print(explain_silence(url, error), file=sys.stderr)
        return NO_ANSWER


def _follow(answer: httpx.Response, verb: str, *, as_json: bool) -> int:
    """Print the neurons' last words; their progress on a terminal only."""
    words = []
    with _progress(as_json) as progressed:
        for line in answer.iter_lines():
            if not line:
                continue
            step = msgspec.json.decode(line, type=_Step)
            if step.state == "progress":
                progressed(step)
            else:
                words.append(step)
    if as_json:
        print(orjson.dumps([msgspec.to_builtins(w) for w in words], option=orjson.OPT_INDENT_2).decode())
    for word in words:
        if word.state == "refused":
            print(f"cortex: {word.node}: {word.text}", file=sys.stderr)
        elif not as_json:
            print(f"{word.node}: {word.text}")
    if not words and not as_json:
        print(f"there is nothing to {verb}")
    return FAILED if any(w.state == "refused" for w in words) else DONE


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[_Step], Any]]:
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda s: bar.update(task, description=f"{s.node}: {s.text}", total=None if s.fraction is None else 1.0,
                                     completed=s.fraction or 0.0, visible=True)  # fmt: skip


def _reason(answer: httpx.Response, verb: str) -> str:
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        error = orjson.loads(answer.content)["error"]
        if error["code"] not in ("invalid_api_key", "not_found") or error["param"] is not None:
            return str(error["message"])
    return explain(answer, f"fleet/{verb}")
