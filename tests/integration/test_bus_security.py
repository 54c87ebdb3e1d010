"""A neuron with keys: nothing answers a stranger, roles hold for each message, and a revoked key stops."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
import zmq

from common.codec import encode
from common.endpoint import Endpoint
from common.errors import Code
from common.ids import new_incarnation
from common.keys import Credentials, KeyPair, make_pair
from common.messages import (
    PROTOCOL_VERSION,
    Abort,
    Done,
    Hello,
    Load,
    Status,
    StatusReply,
    Version,
    VersionReply,
)
from common.sockets import bus_dealer
from neuron.ctl.client import NeuronClient, NoAnswer, RequestRefused
from tests.support.fake_engine import write_model
from tests.support.harness import ROOT, Gateway, Neuron, free_port
from tests.support.streams import chat

DEADLINE_S = 20.0


@pytest.fixture
def neuron(tmp_path: Path) -> Iterator[Neuron]:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.0)}"
    models = [{"id": "m", "source": source, "vram_mb": 200, "context": 2000}]
    with Neuron(tmp_path / "n", models=models, engine="tests.support.fake_engine", security="curve") as started:
        yield started


def key_of(neuron: Neuron) -> bytes:
    assert neuron.credentials is not None
    return neuron.credentials.neuron


def client(neuron: Neuron, pair: KeyPair, timeout_s: float = 5.0) -> NeuronClient:
    return NeuronClient(Endpoint("127.0.0.1", neuron.port), timeout_s, Credentials(pair, key_of(neuron)))


def config(neuron: Neuron) -> str:
    return str(neuron.folder / "neuron.yaml")


def wait_until(is_true: Callable[[], bool], neuron: Neuron) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, neuron.log
        time.sleep(0.05)


def let_in(neuron: Neuron, role: str, path: Path) -> KeyPair:
    """Authorise a new key as an operator does, and wait until it is."""
    pair = make_pair(path)
    done = neuron.ctl("authorize", role, pair.public.hex(), "a test's", "--config", config(neuron))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: answers(neuron, pair), neuron)
    return pair


def answers(neuron: Neuron, pair: KeyPair) -> bool:
    try:
        with client(neuron, pair, 0.5) as asking:
            asking.ask(lambda r: Version(request=r), VersionReply)
    except NoAnswer:
        return False
    return True


def test_without_an_authorised_key_nothing_answers(neuron: Neuron, tmp_path: Path) -> None:
    stranger = make_pair(tmp_path / "stranger")
    address = Endpoint("127.0.0.1", neuron.port)
    known = neuron.credentials
    assert known is not None
    for credentials in (None, Credentials(stranger, known.neuron), Credentials(known.pair, stranger.public)):
        with NeuronClient(address, 0.5, credentials) as asking, pytest.raises(NoAnswer):
            asking.ask(lambda r: Status(request=r), StatusReply)
    assert stranger.public.hex() in neuron.log
    assert "is not in" in neuron.log
    assert neuron.status()["state"]["state"] == "serving"


def test_a_role_holds_for_each_message(neuron: Neuron, tmp_path: Path) -> None:
    observer = let_in(neuron, "observer", tmp_path / "observer")
    with client(neuron, observer) as asking:
        asking.ask(lambda r: Status(request=r), StatusReply)
        with pytest.raises(RequestRefused, match="authorised as observer, which may not send Load") as refused:
            asking.ask(lambda r: Load(request=r, model="m"), Done)
        assert refused.value.code is Code.PERMISSION_DENIED
        asking.ask(lambda r: Status(request=r), StatusReply)
    assert "which may not send Load" in neuron.log
    admin = let_in(neuron, "admin", tmp_path / "admin")
    with client(neuron, admin) as asking:
        asking.ask(lambda r: Load(request=r, model="m"), Done)
        with pytest.raises(RequestRefused, match="may not send Abort"):
            asking.ask(lambda _: Abort(jobs=[]), Done)


def test_an_admins_key_does_not_pass_for_a_gateway_nor_for_another_peer(neuron: Neuron, tmp_path: Path) -> None:
    one, other = (let_in(neuron, "admin", tmp_path / name) for name in ("one", "other"))
    incarnation = new_incarnation()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    first = bus_dealer(context, neuron.endpoint, incarnation, Credentials(one, key_of(neuron)))
    try:
        posing = Hello(version=PROTOCOL_VERSION, incarnation=incarnation, role="gateway", name="posing")
        assert first.poll(int(DEADLINE_S * 1000), zmq.POLLOUT)
        first.send(encode(posing))
        wait_until(lambda: "which may not send Hello as a gateway" in neuron.log, neuron)
    finally:
        first.close(linger=0)
    second = bus_dealer(context, neuron.endpoint, incarnation, Credentials(other, key_of(neuron)))
    try:
        assert second.poll(int(DEADLINE_S * 1000), zmq.POLLOUT)
        second.send(encode(Status(request="r")))
        wait_until(lambda: "routing id that belongs to another key" in neuron.log, neuron)
        assert not second.poll(200)
    finally:
        second.close(linger=0)
        context.term()


def test_a_gateway_serves_by_key_until_it_is_revoked_and_again_once_it_is_authorised(
    neuron: Neuron, tmp_path: Path
) -> None:
    folder = tmp_path / "g"
    gateway = Gateway(folder, endpoints={"beast": neuron.endpoint}, recovery_s=0.2, node_grace_s=0.2)
    file = str(folder / "cortex.yaml")
    trusted = subprocess.run(
        [sys.executable, "-m", "cortex", "trust", "beast", key_of(neuron).hex(), "--config", file],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert trusted.returncode == 0, trusted.stderr
    own = trusted.stdout.split("neuronctl authorize gateway ")[1].split()[0]

    def serves() -> bool:
        return httpx.post(
            f"{gateway.url}/v1/chat/completions", json=chat("m", "x", max_tokens=4), timeout=30
        ).is_success

    with gateway:
        assert not serves()
        wait_until(lambda: f"neuronctl authorize gateway {own}" in gateway.log, neuron)
        for _ in range(2):
            assert neuron.ctl("authorize", "gateway", own, "--config", config(neuron)).returncode == 0
            wait_until(serves, neuron)
            assert neuron.ctl("revoke", own, "--config", config(neuron)).returncode == 0
            wait_until(lambda: not serves(), neuron)
        assert "this key was revoked" in gateway.log


def test_a_mistake_in_authorized_keys_changes_nothing(neuron: Neuron, tmp_path: Path) -> None:
    observer = let_in(neuron, "observer", tmp_path / "observer")
    with (neuron.folder / "keys" / "authorized_keys").open("a") as file:
        file.write("nonsense\n")
    wait_until(lambda: "the keys stay as they were" in neuron.log, neuron)
    assert answers(neuron, observer)


def test_beyond_loopback_a_neuron_wants_a_key_or_the_word_plaintext(tmp_path: Path) -> None:
    path = tmp_path / "neuron.yaml"
    devices = [{"kind": "cpu", "memory_mb": 500}]
    path.write_text(yaml.safe_dump({"listen": f"tcp://0.0.0.0:{free_port()}", "devices": devices}))
    started = subprocess.run(
        [sys.executable, "-m", "neuron", "--config", str(path)],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert started.returncode == 1
    assert "neuron keygen" in started.stderr
    assert "security: plaintext" in started.stderr


def test_neuronctl_shows_and_steers_with_a_key_and_not_without_one(neuron: Neuron, tmp_path: Path) -> None:
    let_in(neuron, "admin", tmp_path / "admin")
    mine = ("--key", str(tmp_path / "admin"), "--neuron-key", key_of(neuron).hex())
    own = ("--key", str(neuron.folder / "keys" / "neuron.key"))  # root's way, on the host itself
    for key in (mine, own):
        assert neuron.ctl("load", "m", *key).returncode == 0
        for words, shown in (("top --once --interval 0.1", "beast  serving"), ("workers", "CPU-0"), ("ping", "ms"),
                             ("requests", ""), ("events", "model loaded"), ("logs CPU-0", "")):  # fmt: skip
            done = neuron.ctl(*words.split(), *key)
            assert (done.returncode, shown in done.stdout) == (0, True), f"{words}: {done.stdout}{done.stderr}"
    assert neuron.ctl("top", "--once", "--timeout", "0.5").returncode == 3
