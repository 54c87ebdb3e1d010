"""neuronctl events and logs: what has happened on the host, and what its worker processes said."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import orjson

from common.errors import Code
from common.messages import EventsReply, LifecycleEvent, LogReply, ReadEvents, ReadLog
from neuron.ctl.client import NeuronClient, NoAnswer, RequestRefused, plain
from neuron.ctl.command import LocalCommand, Runnable

T = TypeVar("T")

FOLLOW_S = 0.5
"""Between two looks."""
LINES = 100


def describe(event: LifecycleEvent, wall_s: float) -> str:
    """Return one line of text. `wall_s`: now, seconds since 1970."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s - event.age_ms / 1000))
    about = " on ".join(x for x in (event.model, event.device) if x)
    reason = f": {event.reason}" if event.reason else ""
    details = " ".join(f"{k}={v}" for k, v in event.details.items())
    return f"{event.cursor:>6} {at} {event.level:7} {f'{about}: ' if about else ''}{event.what}{reason}" + (
        f" ({details})" if details else ""
    )


def _events_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, default=0, metavar="CURSOR", help="only those after this number")
    parser.add_argument("--last", type=int, metavar="N", help="of the past only so many")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until Ctrl-C")


class _Past:
    """What has been shown, in which life of the neuron."""

    def __init__(self, since: int) -> None:
        self.cursor = since
        self.is_first = True
        self._life = ""

    def take(self, incarnation: str) -> bool:
        """Note whose answer it is; False if another life has begun, whose numbers begin anew."""
        is_same = self._life in ("", incarnation)
        self._life = incarnation
        if not is_same:
            self.cursor = 0
            print("neuronctl: the neuron was restarted", file=sys.stderr)
        return is_same

    def news(self, items: Sequence[T], last: int | None) -> Sequence[T]:
        """Return what is to be shown: at first no more than the `last`."""
        if self.is_first and last is not None:
            items = items[max(0, len(items) - last) :]
        self.is_first = False
        return items


def _look(show: Callable[[], None], *, follow: bool) -> None:
    """Look once, or again and again, also past a restart of the neuron."""
    is_told = False
    while True:
        try:
            show()
            is_told = False
        except (NoAnswer, RequestRefused) as error:
            if not follow or (isinstance(error, RequestRefused) and error.code is not Code.NEURON_LOST):
                raise
            if not is_told:
                is_told = True
                print(f"neuronctl: {error}", file=sys.stderr)
        if not follow:
            return
        time.sleep(FOLLOW_S)


def _events(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    past = _Past(arguments.since)

    def show() -> None:
        reply = client.ask(lambda r: ReadEvents(request=r, since=past.cursor), EventsReply)
        if past.take(reply.incarnation):
            for event in past.news(reply.events, arguments.last):
                past.cursor = event.cursor
                print(orjson.dumps(plain(event)).decode() if as_json else describe(event, time.time()), flush=True)

    _look(show, follow=arguments.follow)


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="UUID, as status shows it; or prep, or probe")
    parser.add_argument("--last", "-n", type=int, default=LINES, metavar="N", help=f"of the past (default: {LINES})")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until Ctrl-C")


def _logs(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    past = _Past(0)

    def show() -> None:
        reply = client.ask(lambda r: ReadLog(request=r, child=arguments.device, since=past.cursor), LogReply)
        if past.take(reply.incarnation):
            past.cursor = reply.cursor
            for line in past.news(reply.lines, arguments.last):
                print(orjson.dumps(line).decode() if as_json else line, flush=True)

    _look(show, follow=arguments.follow)


HAPPENINGS: dict[str, Runnable] = {
    "events": LocalCommand("what has happened to workers, models and gateways, and why", _events, _events_arguments),
    "logs": LocalCommand("what a device's worker processes wrote, the dead ones too", _logs, _logs_arguments),
}
