"""What a command of neuronctl is: a question to the neuron and how its answer is shown, or something done here."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import orjson
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from common.messages import Progress
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


@dataclass(frozen=True)
class LocalCommand:
    """A command about this host itself, whether or not a neuron runs."""

    help: str
    action: Callable[[NeuronClient, argparse.Namespace, bool], None]
    add_arguments: Callable[[argparse.ArgumentParser], None]

    def run(self, client: NeuronClient, arguments: argparse.Namespace, *, as_json: bool) -> None:
        """Do it."""
        self.action(client, arguments, as_json)


class Runnable(Protocol):
    """What the command line knows of a command."""

    @property
    def help(self) -> str:
        """One line."""

    @property
    def add_arguments(self) -> Callable[[argparse.ArgumentParser], None]:
        """What adds its arguments to its parser."""

    def run(self, client: NeuronClient, arguments: argparse.Namespace, *, as_json: bool) -> None:
        """Do it. Raises HelexaError."""


def print_json(message: Any) -> None:
    """Print a message as JSON, defaults included."""
    print(orjson.dumps(plain(message), option=orjson.OPT_INDENT_2).decode())
