"""neuronctl completion: what a shell needs to complete commands, options, models and devices."""

import argparse

from common.shell_completion import SHELLS, write_script
from neuron.ctl.client import NeuronClient
from neuron.ctl.command import LocalCommand, Runnable


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose script is printed")


def _run(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    from neuron.ctl.__main__ import build_parser

    print(write_script(arguments.shell, build_parser()), end="")


COMPLETION: dict[str, Runnable] = {
    "completion": LocalCommand("print a completion script: neuronctl completion bash", _run, _arguments)
}
