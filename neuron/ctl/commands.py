"""neuronctl's commands: what each asks the neuron, and how its answer is shown."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from common import __version__, tables
from common.errors import ConfigError
from common.messages import (
    ClearCache,
    Discover,
    DiscoverReply,
    Done,
    Drain,
    Health,
    HealthReply,
    Load,
    Memory,
    MemoryReply,
    Models,
    ModelsReply,
    Pause,
    Pin,
    Progress,
    RestartWorker,
    Resume,
    Status,
    StatusReply,
    Undrain,
    Unload,
    Unpin,
    Version,
    VersionReply,
)
from neuron.ctl import access, disk, doctor
from neuron.ctl.client import NeuronClient, plain

Question = Callable[[str, argparse.Namespace], msgspec.Struct]
Show = Callable[[Any], None]


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    help: str
    question: Question
    reply: type[Any]
    show: Show
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None

    def run(self, client: NeuronClient, arguments: argparse.Namespace, *, as_json: bool) -> None:
        """Ask, and print the answer."""
        with _progress(as_json) as progressed:
            reply = client.ask(
                lambda request: self.question(request, arguments),
                self.reply,
                progressed=progressed,
            )
        if as_json:
            print(orjson.dumps(plain(reply), option=orjson.OPT_INDENT_2).decode())
        else:
            self.show(reply)


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[Progress], None]]:
    """Show how far a request is, on a terminal only and never in the output itself."""
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield lambda _: None
        return
    with Bar(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
             console=console, transient=True) as bar:  # fmt: skip
        task = bar.add_task("", total=None, visible=False)
        yield lambda p: bar.update(task, description=p.text, total=None if p.fraction is None else 1.0,
                                     completed=p.fraction or 0.0, visible=True)  # fmt: skip


def _show_status(reply: StatusReply) -> None:
    state = reply.state
    build = f", {state.build}" if state.build else ""
    print(f"{state.name}: {state.state}, neuron {state.version}{build}, {reply.peers} gateway processes connected")
    if reply.undecodable:
        print(f"{reply.undecodable} frames were no messages; see the log")
    tables.show_devices(state.devices)
    tables.show_models(state.models)
    if reply.jobs:
        tables.show_jobs(reply.jobs)
    else:
        print("no jobs")


def _show_health(reply: HealthReply) -> None:
    print(reply.status)
    for reason in reply.reasons:
        print(f"  {reason}")


def _show_version(reply: VersionReply) -> None:
    print(f"neuron {reply.version}, protocol {'.'.join(map(str, reply.protocol))}, {reply.build or 'no worker yet'}")
    print(f"neuronctl {__version__}")


def _show_done(reply: Done) -> None:
    print(reply.text)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="id or alias")


def _model_and_device(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--device", metavar="UUID", help="on this device only")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="UUID, as status shows it")


def _pause(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    parser.add_argument(
        "--for", dest="for_s", type=_duration, metavar="TIME", help="for example 90m, 2h, 1d (default: until resume)"
    )


def _duration(text: str) -> float:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in seconds or not number.replace(".", "", 1).isdigit() or not float(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write for example 90m, 2h or 1d")
    return float(number) * seconds[unit]


def _optional_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="id or alias; without it all")


def _scope(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--model", help="a model, which is then unloaded")
    group.add_argument("--device", metavar="UUID", help="a device, whose worker then ends")


def _target(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.model:
        return {"scope": "model", "target": arguments.model}
    if arguments.device:
        return {"scope": "device", "target": arguments.device}
    return {"scope": "node"}


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("ls", "rm", "prune"), default="ls",
                        help="list them (default); remove one from the disk; clean up after downloads")  # fmt: skip
    parser.add_argument("model", nargs="?", help="rm: id of `models ls --disk`, or hf:ORG/REPO:QUANT")
    parser.add_argument("--disk", action="store_true", help="ls: what lies on this host's disks, loaded or not")
    parser.add_argument("--yes", action="store_true", help="rm, prune: do not ask")
    disk.add_places(parser)


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="hf:ORG/REPO[:QUANT]", help="or hf:ORG/REPO/FILE.gguf; all its parts come")
    disk.add_places(parser)


class ModelsCommand:
    """`models`: what the neuron serves, or what lies on this host's disks."""

    help = "models this neuron serves or could serve; --disk, rm, prune: those on this host's disks"
    add_arguments = staticmethod(_models_arguments)

    def run(self, client: NeuronClient, arguments: argparse.Namespace, *, as_json: bool) -> None:
        """Do what the action says."""
        match arguments.action:
            case "ls" if arguments.disk:
                disk.list_disk(arguments, as_json)
            case "ls":
                SERVED_MODELS.run(client, arguments, as_json=as_json)
            case "rm" if arguments.model is None:
                raise ConfigError("models rm: which one? `neuronctl models ls --disk` shows them")
            case "rm":
                disk.run_rm(client, arguments, as_json)
            case _:
                disk.run_prune(client, arguments, as_json)


@dataclass(frozen=True)
class LocalCommand:
    """A command about this host itself, whether or not a neuron runs."""

    help: str
    action: Callable[[NeuronClient, argparse.Namespace, bool], None]
    add_arguments: Callable[[argparse.ArgumentParser], None]

    def run(self, client: NeuronClient, arguments: argparse.Namespace, *, as_json: bool) -> None:
        """Do it."""
        self.action(client, arguments, as_json)


SERVED_MODELS = Command(
    "models this neuron serves or could serve",
    lambda r, a: Models(request=r),
    ModelsReply,
    lambda reply: tables.show_models(reply.models),
)
COMMANDS: dict[str, Command | LocalCommand | ModelsCommand] = {
    "status": Command("devices, models and jobs", lambda r, a: Status(request=r), StatusReply, _show_status),
    "models": ModelsCommand(),
    "doctor": LocalCommand("what keeps this host from serving, and what to do", doctor.run, doctor.add_arguments),
    "pull": LocalCommand("fetch a model from Hugging Face to this host", disk.run_pull, _pull_arguments),
    "authorize": LocalCommand("let a key speak to this neuron", access.run_authorize, access.add_authorize),
    "revoke": LocalCommand("let a key in no more", access.run_revoke, access.add_revoke),
    "keys": LocalCommand("this neuron's key, and those it lets in", access.run_keys, access.add_config),
    "devices": Command(
        "devices, also those that are not served",
        lambda r, a: Discover(request=r),
        DiscoverReply,
        lambda reply: tables.show_devices(reply.devices),
    ),
    "health": Command("whether it serves, and if not, why", lambda r, a: Health(request=r), HealthReply, _show_health),
    "memory": Command(
        "what the workers themselves hold",
        lambda r, a: Memory(request=r),
        MemoryReply,
        lambda reply: tables.show_memory(reply.workers),
    ),
    "load": Command(
        "load a model, and wait until it is loaded",
        lambda r, a: Load(request=r, model=a.model, device=a.device),
        Done,
        _show_done,
        _model_and_device,
    ),
    "unload": Command(
        "finish a model's jobs, then unload it",
        lambda r, a: Unload(request=r, model=a.model, device=a.device),
        Done,
        _show_done,
        _model_and_device,
    ),
    "clear-cache": Command(
        "forget KV that belongs to no running job",
        lambda r, a: ClearCache(request=r, model=a.model),
        Done,
        _show_done,
        _optional_model,
    ),
    "drain": Command(
        "take no new jobs, and wait until the running ones have ended: of the node, a model or a device",
        lambda r, a: Drain(request=r, **_target(a)),
        Done,
        _show_done,
        _scope,
    ),
    "undrain": Command("take jobs again", lambda r, a: Undrain(request=r, **_target(a)), Done, _show_done, _scope),
    "pin": Command(
        "never unload a model to make room",
        lambda r, a: Pin(request=r, model=a.model),
        Done,
        _show_done,
        _model,
    ),
    "unpin": Command(
        "let a model be unloaded to make room",
        lambda r, a: Unpin(request=r, model=a.model),
        Done,
        _show_done,
        _model,
    ),
    "pause": Command(
        "leave a device to other programs: finish its jobs, unload its models, end its worker",
        lambda r, a: Pause(request=r, device=a.device, for_s=a.for_s),
        Done,
        _show_done,
        _pause,
    ),
    "resume": Command(
        "end a pause, and load again what the device held",
        lambda r, a: Resume(request=r, device=a.device),
        Done,
        _show_done,
        _device,
    ),
    "restart": Command(
        "end a device's worker and start another; running jobs there fail",
        lambda r, a: RestartWorker(request=r, device=a.device),
        Done,
        _show_done,
        _device,
    ),
    "version": Command("versions", lambda r, a: Version(request=r), VersionReply, _show_version),
}
