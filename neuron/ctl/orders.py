"""neuronctl's orders: load and unload, pins, drains, pauses, restarts. Each is answered when it is done."""

import argparse
from typing import Any

from common.durations import parse_duration
from common.messages import (
    ClearCache,
    Done,
    Drain,
    Load,
    Pause,
    Pin,
    RestartWorker,
    Resume,
    Undrain,
    Unload,
    Unpin,
)
from neuron.ctl.command import Command, Runnable


def _show_done(reply: Done) -> None:
    print(reply.text)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="id or alias")


def _model_and_device(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--device", metavar="UUID", help="on this device only")


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    _model_and_device(parser)
    parser.add_argument("--replace", action="store_true", help="also where it is loaded: with the newest profile")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="UUID, as status shows it")


def _pause(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    parser.add_argument(
        "--for",
        dest="for_s",
        type=parse_duration,
        metavar="TIME",
        help="for example 90m, 2h, 1d (default: until resume)",
    )


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


ORDERS: dict[str, Runnable] = {
    "load": Command(
        "load a model, and wait until it is loaded",
        lambda r, a: Load(request=r, model=a.model, device=a.device, replace=a.replace),
        Done,
        _show_done,
        _load_arguments,
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
}
