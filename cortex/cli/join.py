"""`cortex join`: take a neuron's invitation, which exchanges the keys of both sides and adds the neuron."""

import argparse
import socket
import sys
from pathlib import Path

import zmq

from common.codec import decode_from_neuron, encode
from common.endpoint import Endpoint, parse_endpoint
from common.errors import ConfigError, HelexaError, ProtocolError
from common.handshakes import Handshakes, Trouble
from common.ids import new_incarnation, new_request_id
from common.keys import Credentials, fingerprint, make_pair, pair_of, parse_key, read_pair
from common.messages import Done, Join, Refused
from common.sockets import bus_dealer
from cortex.bus_keys import KEY_FILE, KNOWN_FILE, Beside, read_known, trust
from cortex.neuron_rows import add_neuron
from cortex.settings import load_settings

DONE, FAILED = 0, 1
ANSWER_S = 5.0


class NotJoined(HelexaError):
    """The neuron does not take the invitation."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", config_help: str) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "join",
        help="add a neuron by its invitation",
        description="Add a neuron to the configuration and exchange keys with it. `neuron invite` prints the line.",
    )
    parser.add_argument("name", metavar="NAME", help="what the neuron is called here")
    parser.add_argument("address", metavar="ADDRESS", help="host:port of its bus")
    parser.add_argument("key", metavar="KEY", nargs="?", help="its public key; without: it speaks plain text")
    parser.add_argument("invitation", metavar="INVITATION", nargs="?", help="good once, for an hour")
    parser.add_argument("--replace", action="store_true", help="also where another key of it was accepted before")
    parser.add_argument("--config", type=Path, metavar="FILE", help=config_help)


def run(arguments: argparse.Namespace, config: Path) -> int:
    """Join; return the exit status. Raises ConfigError."""
    name: str = arguments.name
    address = parse_endpoint(arguments.address, "ADDRESS")
    configured = load_settings(config).neuron_endpoints()
    if configured.get(name, address) != address:
        raise ConfigError(
            f"{config}: neuron {name} is at {configured[name]} there, not at {address}; correct one of them"
        )
    if arguments.key is not None:
        if arguments.invitation is None:
            raise ConfigError("INVITATION is missing: paste the whole line that `neuron invite` printed")
        try:
            _exchange(arguments, config, address)
        except (NotJoined, ProtocolError) as error:
            print(f"cortex: {address}: {error}", file=sys.stderr)
            return FAILED
    if name not in configured:
        add_neuron(config, name, address)
        print(f"{config}: neuron {name} at {address} was added; restart the gateway to apply it")
    return DONE


def _exchange(arguments: argparse.Namespace, config: Path, address: Endpoint) -> None:
    """Have the neuron let this gateway in, and accept its key."""
    folder = config.resolve().parent
    name, key = arguments.name, parse_key(arguments.key, "KEY")
    invitation = pair_of(parse_key(arguments.invitation, "INVITATION"))
    before = read_known(folder / KNOWN_FILE).get(name, ())
    if before and key not in before and not arguments.replace:
        raise ConfigError(
            f"{folder / KNOWN_FILE}: neuron {name} had another key, {fingerprint(before[-1])}. If it was made anew on "
            "that host, add --replace to the line"
        )
    path = folder / KEY_FILE
    own = read_pair(path) if path.exists() else make_pair(path)
    join = Join(request=new_request_id(), key=own.public.hex(), comment=f"cortex on {socket.gethostname()}")
    _send(join, address, Credentials(invitation, key))
    other: Beside = "replace" if arguments.replace else "nothing"
    trust(folder / KNOWN_FILE, name, key, other=other)
    print(f"neuron {name} is {fingerprint(key)}, and knows this gateway as {fingerprint(own.public)}")


def _send(join: Join, address: Endpoint, credentials: Credentials) -> None:
    """Send it and wait for the answer. Raises NotJoined, ProtocolError."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = bus_dealer(context, address.zmq, new_incarnation(), credentials)
    handshakes = Handshakes(link)
    try:
        if not link.poll(int(ANSWER_S * 1000), zmq.POLLOUT):
            raise NotJoined(_explain(handshakes.trouble()))
        link.send(encode(join))
        answer = decode_from_neuron(link.recv()) if link.poll(int(ANSWER_S * 1000)) else None
    finally:
        handshakes.close()
        link.close()
        context.term()
    if isinstance(answer, Refused):
        raise NotJoined(answer.message)
    if not isinstance(answer, Done):
        raise NotJoined("the neuron there does not answer the invitation; see its log")


def _explain(trouble: Trouble | None) -> str:
    match trouble:
        case None:
            return "no neuron answers there; is it running, and is its port open to this host?"
        case Trouble.KEY_REFUSED:
            return "this invitation has been used, or is over; `neuron invite` on that host prints another"
        case _:
            return (
                "another neuron is there, or it has another key by now; `neuron invite` on that host prints a new line"
            )
