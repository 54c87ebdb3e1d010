"""`cortex doctor`: what keeps the gateway from serving, and what to do about it."""

import importlib.util
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import zmq

from common import __version__
from common.checkup import Finding, check_port, check_version, show
from common.codec import decode_from_neuron, encode
from common.endpoint import Endpoint
from common.errors import ConfigError, ProtocolError
from common.handshakes import Handshakes, explain
from common.ids import new_incarnation
from common.keys import Credentials
from common.messages import PROTOCOL_VERSION, FromNeuron, Hello, NodeState, Refused
from common.sockets import bus_dealer
from cortex.access.access import Access
from cortex.configuration import Configuration

DONE, FAILED = 0, 1
ANSWER_S = 3.0
FILES = 4096
"""Open files that a gateway process should be allowed: each stream takes one, each neuron a few."""


def run_doctor(config: Path, *, as_json: bool) -> int:
    """Look at everything, print it; return the exit status."""
    failures = show(list(examine(config)), as_json=as_json)
    if failures:
        print(f"cortex: {failures} of the checks failed", file=sys.stderr)
    return FAILED if failures else DONE


def examine(config: Path) -> Iterator[Finding]:
    """Yield what is found, one subject after the other."""
    missing = [m for m in ("falcon", "gunicorn", "uvloop") if importlib.util.find_spec(m) is None]
    if missing:
        remedy = "install the gateway extra: pip install 'helexa[gateway]'"
        yield Finding("failure", "installation", f"missing: {', '.join(missing)}", remedy)
    try:
        configuration = Configuration(config)
    except ConfigError as error:
        yield Finding("failure", "configuration", str(error), "correct it; the gateway does not start with it")
        return
    models = len(configuration.catalogue.models)
    yield Finding("ok", "configuration", f"{config}, {models} profiles, {len(configuration.settings.neurons)} neurons")
    ring, settings = configuration.api_keys.ring, configuration.settings
    access = Access(configuration.admin_keys, anonymous=settings.access.anonymous, ring=lambda: ring)
    if access.lets_anybody_in and not settings.listen.is_loopback:
        remedy = "cortex keys create; or leave it so, where everybody who reaches it may use it"
        yield Finding("warning", "access", f"{settings.listen} answers whoever reaches it, without a key", remedy)
    if not configuration.admin_keys and not ring.has_admin:
        remedy = "cortex keys create --role admin, or set gateway.admin_keys to the output of: openssl rand -hex 24"
        yield Finding("warning", "keys", "there are no admin keys, so `cortex status` has nothing to ask", remedy)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < FILES:
        remedy = "LimitNOFILE=65536 in the unit, or ulimit -n"
        yield Finding("warning", "open files", f"this user may open {limit}; each stream takes one", remedy)
    yield _gateway(settings.listen, "http" if configuration.certificate is None else "https")
    if not configuration.settings.neurons:
        yield Finding("failure", "neurons", "none is configured", "add a [[neurons]] section with name and endpoint")
    for name, endpoint in configuration.settings.neuron_endpoints().items():
        yield from _neuron(f"neuron {name}", endpoint, configuration.known_neurons.keys.credentials(name))


def _gateway(listen: Endpoint, scheme: str) -> Finding:
    host = "127.0.0.1" if listen.host in ("0.0.0.0", "[::]") else listen.host
    try:
        # Whoever it is; nothing is told to it but that somebody wants to know its version.
        url = f"{scheme}://{host}:{listen.port}/version"
        answer = httpx.get(url, timeout=ANSWER_S, trust_env=False, verify=False)  # noqa: S501 - see above
        version = answer.json().get("version")
    except (httpx.HTTPError, ValueError, AttributeError):
        return check_port("gateway", listen, "cortex")
    return check_version("gateway", str(version))


def _neuron(subject: str, endpoint: Endpoint, credentials: Sequence[Credentials]) -> Iterator[Finding]:
    """Say Hello to a neuron as neuronctl does, and judge its state. `credentials`: one for each key it may have."""
    trouble: str | None = None
    try:
        for own in credentials or (None,):
            answer, trouble = _hello(endpoint, own)
            if trouble is None:
                break
    except ProtocolError as error:
        yield Finding("failure", subject, f"{endpoint}: {error}", "another version, or no neuron")
        return
    if trouble is not None:
        yield Finding("failure", subject, f"{endpoint} cannot be reached", trouble)
        return
    if isinstance(answer, Refused):
        yield Finding("failure", subject, answer.message, f"this program is version {__version__}")
    elif not isinstance(answer, NodeState):
        yield Finding("failure", subject, f"{endpoint} takes connections, but no neuron answers", "see its log")
    else:
        yield check_version(subject, answer.version)
        if answer.exposed:
            remedy = "neuron keygen, cortex trust, neuronctl authorize; then remove `security: plaintext` there"
            yield Finding("warning", subject, "its bus is plain text, and everybody on its network can use it", remedy)
        for device in answer.devices:
            if device.state in ("unavailable", "quarantined"):
                yield Finding("failure", f"{subject}, device {device.uuid}", device.reason or device.state,
                              "run `neuronctl doctor` on that host")  # fmt: skip
        if answer.state == "draining":
            yield Finding("warning", subject, "is draining", "neuronctl undrain")


def _hello(endpoint: Endpoint, own: Credentials | None) -> tuple[FromNeuron | None, str | None]:
    """Return the answer to a Hello, if there is one, and what keeps it from being said. Raises ProtocolError."""
    incarnation = new_incarnation()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = bus_dealer(context, endpoint.zmq, incarnation, own)
    handshakes = Handshakes(link)
    try:
        hello = Hello(version=PROTOCOL_VERSION, incarnation=incarnation, role="admin", name="cortex doctor")
        wait_ms = int(ANSWER_S * 1000)
        if not link.poll(wait_ms, zmq.POLLOUT):
            trouble = handshakes.trouble()
            if trouble is None:
                return None, "is it running, is `listen` beyond loopback, is the port open?"
            key = "KEY" if own is None else own.pair.public.hex()
            return None, explain(trouble, has_key=own is not None, own_key=key)
        link.send(encode(hello))
        return decode_from_neuron(link.recv()) if link.poll(wait_ms) else None, None
    finally:
        handshakes.close()
        link.close()
        context.term()
