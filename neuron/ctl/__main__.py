"""`neuronctl`: the admin tool of one neuron."""

import argparse
import os
import sys
from pathlib import Path

from common.endpoint import Endpoint, SocketFile, parse_endpoint
from common.errors import ConfigError, HelexaError
from common.keys import Credentials, parse_key, read_pair
from common.revision import ShowVersion
from neuron.ctl.client import NeuronClient, NoAnswer
from neuron.ctl.commands import COMMANDS

DEFAULT_ENDPOINT = "tcp://127.0.0.1:13131"
DEFAULT_SOCKET = "/run/neuron/neuron.sock"
"""Of the packages' service."""
DONE, FAILED, USAGE, NO_ANSWER = 0, 1, 2, 3

_EPILOG = """\
examples:
  neuronctl top                            devices, models, requests and speed, live
  neuronctl requests                       what waits and runs; requests cancel ID ends one
  neuronctl events --follow                what happens to workers and models, and why
  neuronctl logs CPU-0                     what its worker processes wrote, the dead ones too
  neuronctl status                         devices, models and jobs of the neuron on this host
  neuronctl --endpoint beast:13131 models
  neuronctl doctor                         what keeps this host from serving, and what to do
  neuronctl pull hf:ORG/REPO:Q4_K_M        fetch a model to this host; models ls --disk shows what is there
  neuronctl load smollm2-135m-instruct --device CPU-1
  neuronctl drain --device CPU-1           finish its jobs, take no new ones, end its worker
  neuronctl --endpoint beast:13131 --key MY.key --neuron-key KEY status      where the bus is encrypted
  neuronctl authorize gateway KEY cortex   let a gateway in; revoke KEY ends that at once
  neuronctl restart CPU-1                  a new worker process; its models are loaded again

  eval "$(neuronctl completion bash)"      completion of commands and options; also zsh and fish

exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answers
NEURON_ENDPOINT sets the default of --endpoint. Without either, and without --key, root and the group `neuron` go by
the socket file /run/neuron/neuron.sock where there is one: no key is needed on the host itself.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    # The same options are accepted before and after the command; SUPPRESS keeps one from resetting the other.
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument(
        "--endpoint",
        metavar="ADDRESS",
        help=f"host:port, or ipc://FILE on the host itself; default: $NEURON_ENDPOINT, else {DEFAULT_SOCKET} for whom "
        f"it lets in, else {DEFAULT_ENDPOINT}",
    )
    shared.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="silence that is accepted (default: 5)")
    shared.add_argument(
        "--key", dest="key_file", metavar="FILE", help="secret key, yours or the neuron's; default: $NEURON_KEY"
    )
    shared.add_argument("--neuron-key", metavar="KEY", help="its public key; default: $NEURON_PUBLIC_KEY, else --key's")
    shared.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(
        prog="neuronctl",
        description="Look at one neuron and steer it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help, parents=[shared])
        command.add_arguments(sub)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return value


def _credentials(arguments: argparse.Namespace) -> Credentials | None:
    file = getattr(arguments, "key_file", os.environ.get("NEURON_KEY"))
    if not file:
        return None
    pair = read_pair(Path(file))
    text = getattr(arguments, "neuron_key", os.environ.get("NEURON_PUBLIC_KEY"))
    return Credentials(pair, parse_key(text, "--neuron-key") if text else pair.public)


def choose_endpoint(arguments: argparse.Namespace, socket_file: str = DEFAULT_SOCKET) -> Endpoint | SocketFile:
    """Return where the neuron is spoken to. Raises ConfigError."""
    text = getattr(arguments, "endpoint", os.environ.get("NEURON_ENDPOINT"))
    if text is None:
        has_key = bool(getattr(arguments, "key_file", os.environ.get("NEURON_KEY")))
        if not has_key and os.access(socket_file, os.R_OK | os.W_OK):
            return SocketFile(socket_file)
        text = DEFAULT_ENDPOINT
    if text.startswith("ipc://"):
        return SocketFile(text.removeprefix("ipc://"))
    return parse_endpoint(text, "--endpoint")


def main() -> int:
    """Run the program; return its exit status."""
    arguments = build_parser().parse_args()
    command = COMMANDS[arguments.command]
    try:
        with NeuronClient(
            choose_endpoint(arguments), getattr(arguments, "timeout", 5.0), _credentials(arguments)
        ) as client:
            command.run(client, arguments, as_json=getattr(arguments, "json", False))
    except NoAnswer as error:
        print(f"neuronctl: {error}", file=sys.stderr)
        return NO_ANSWER
    except ConfigError as error:
        print(f"neuronctl: {error}", file=sys.stderr)
        return USAGE
    except HelexaError as error:
        print(f"neuronctl: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return DONE  # the reader, a pager for example, has seen enough
    except KeyboardInterrupt:
        return 130
    return DONE


if __name__ == "__main__":
    sys.exit(main())
