"""neuronctl's commands about models: what the neuron serves, what lies on this host's disks, fetching."""

import argparse

from common import tables
from common.errors import ConfigError
from common.messages import Effective, EffectiveReply, Models, ModelsReply
from neuron.ctl import disk
from neuron.ctl.client import NeuronClient
from neuron.ctl.command import Command, LocalCommand, Runnable

SERVED_MODELS = Command(
    "models this neuron serves or could serve",
    lambda r, a: Models(request=r),
    ModelsReply,
    lambda reply: tables.show_models(reply.models),
)


def _show_effective(reply: EffectiveReply) -> None:
    print(reply.model)
    rows = [[s.name, s.value, s.device or "-", s.why] for s in reply.settings]
    tables.show(("SETTING", "VALUE", "WHERE", "WHY"), rows)


EFFECTIVE = Command(
    "what a model runs with, and why",
    lambda r, a: Effective(request=r, model=a.effective),
    EffectiveReply,
    _show_effective,
)


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("ls", "rm", "prune"), default="ls",
                        help="list them (default); remove one from the disk; clean up after downloads")  # fmt: skip
    parser.add_argument("model", nargs="?", help="rm: id of `models ls --disk`, or hf:ORG/REPO:QUANT")
    parser.add_argument("--disk", action="store_true", help="ls: what lies on this host's disks, loaded or not")
    parser.add_argument("--effective", metavar="ID", help="ls: what this model runs with, and why")
    parser.add_argument("--yes", action="store_true", help="rm, prune: do not ask")
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
            case "ls" if arguments.effective is not None:
                EFFECTIVE.run(client, arguments, as_json=as_json)
            case "ls":
                SERVED_MODELS.run(client, arguments, as_json=as_json)
            case "rm" if arguments.model is None:
                raise ConfigError("models rm: which one? `neuronctl models ls --disk` shows them")
            case "rm":
                disk.run_rm(client, arguments, as_json)
            case _:
                disk.run_prune(client, arguments, as_json)


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="hf:ORG/REPO[:QUANT]", help="or hf:ORG/REPO/FILE.gguf; all its parts come")
    disk.add_places(parser)


MODELS: dict[str, Runnable] = {
    "models": ModelsCommand(),
    "pull": LocalCommand("fetch a model from Hugging Face to this host", disk.run_pull, _pull_arguments),
}
