"""`python -m neuron.models.fetch hf:…`: fetches one model for the supervisor, which carries no HTTP client itself.

What it says goes over a line as the other children's do, in JSON.
"""

import argparse
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from common.errors import HelexaError
from common.frames import FrameSocket
from neuron.process.lifeline import attach

SAY_S = 0.5
"""Between two words on how far it is."""


class FetchSaid(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far it is, or how it has ended."""

    done_bytes: int = 0
    total_bytes: int = 0
    is_complete: bool = False
    error: str | None = None


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="neuron.models.fetch", description=__doc__)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--supervisor-pid", type=int, required=True)
    parser.add_argument("--line", type=int, required=True, help="file descriptor of the socket to the supervisor")
    parser.add_argument("--cache", type=Path, required=True, help="the Hugging Face cache")
    parser.add_argument("source", help="hf:ORG/REPO:QUANT")
    arguments = parser.parse_args()
    attach(arguments.lifeline, arguments.supervisor_pid)
    line = FrameSocket(socket.socket(fileno=arguments.line))
    line.send([msgspec.json.encode(_fetch(arguments.source, arguments.cache, line))])
    return 0


def _fetch(source: str, cache: Path, line: FrameSocket) -> FetchSaid:
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from neuron.models.download import pull
    from neuron.models.hub_cache import parse_reference

    said_at = 0.0

    def arrived(done: int, total: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_S:
            said_at = time.monotonic()
            line.send([msgspec.json.encode(FetchSaid(done_bytes=done, total_bytes=total))])

    try:
        pull(parse_reference(source), cache, say=lambda text: print(text, file=sys.stderr, flush=True), arrived=arrived)
    except HelexaError as error:
        return FetchSaid(error=str(error))
    return FetchSaid(is_complete=True)


if __name__ == "__main__":
    sys.exit(main())
