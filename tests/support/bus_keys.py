"""Keys of the bus as operators handle them, for tests of neurons that want one."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.endpoint import Endpoint
from common.keys import Credentials, KeyPair, make_pair
from common.messages import Version, VersionReply
from neuron.ctl.client import NeuronClient, NoAnswer
from tests.support.harness import ROOT, Daemon, Neuron

DEADLINE_S = 20.0


def key_of(neuron: Neuron) -> bytes:
    """Return the public key that it was started with."""
    assert neuron.credentials is not None
    return neuron.credentials.neuron


def client(neuron: Neuron, pair: KeyPair, timeout_s: float = 5.0) -> NeuronClient:
    """Return a client with a key of its own."""
    return NeuronClient(Endpoint("127.0.0.1", neuron.port), timeout_s, Credentials(pair, key_of(neuron)))


def config(daemon: Daemon, program: str = "neuron") -> str:
    """Return the path of its configuration."""
    return str(daemon.folder / f"{program}.yaml")


def wait_until(is_true: Callable[[], bool], daemon: Daemon) -> None:
    """Wait for a condition; fail with the daemon's log."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.05)


def let_in(neuron: Neuron, role: str, path: Path) -> KeyPair:
    """Authorise a new key as an operator does, and wait until it is."""
    pair = make_pair(path)
    done = neuron.ctl("authorize", role, pair.public.hex(), "a test's", "--config", config(neuron))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: answers(neuron, pair), neuron)
    return pair


def answers(neuron: Neuron, pair: KeyPair) -> bool:
    """Say whether the neuron answers to a key."""
    try:
        with client(neuron, pair, 0.5) as asking:
            asking.ask(lambda r: Version(request=r), VersionReply)
    except NoAnswer:
        return False
    return True


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `cortex` or `neuron` with a command that ends."""
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def printed(program: str, *arguments: str) -> str:
    """Run a command that succeeds, and return what it prints."""
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
