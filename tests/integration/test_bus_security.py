"""A neuron with keys: nothing answers a stranger, roles hold for each message, and a revoked key stops."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
import zmq

from common.codec import encode
from common.endpoint import Endpoint
from common.errors import Code
from common.ids import new_incarnation
from common.keys import Credentials, make_pair
from common.messages import (
    PROTOCOL_VERSION,
    Abort,
    Done,
    Hello,
    Load,
    Status,
    StatusReply,
    Unload,
)
from common.sockets import bus_dealer
from neuron.ctl.client import NeuronClient, NoAnswer, RequestRefused
from tests.support.bus_keys import DEADLINE_S, answers, client, config, key_of, let_in, printed, run, wait_until
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron, free_port
from tests.support.recorder import Recorder
from tests.support.streams import chat

GREETING, WELCOME = 64, 2 + 168
"""Bytes of ZMTP 3.1's first two answers to whoever connects to a CURVE server (RFC 23, RFC 26)."""


@pytest.fixture
def neuron(tmp_path: Path) -> Iterator[Neuron]:
    source = f"file:{write_model(tmp_path / 'm.json', token_s=0.0)}"
    models = [{"id": "m", "source": source, "vram_mb": 200, "context": 2000}]
    with Neuron(tmp_path / "n", models=models, engine="tests.support.fake_engine", security="curve") as started:
        yield started


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


def test_a_recorded_conversation_that_is_sent_again_does_nothing_and_learns_nothing(
    neuron: Neuron, tmp_path: Path
) -> None:
    admin = let_in(neuron, "admin", tmp_path / "admin")
    with Recorder(neuron.port) as recorder:
        own = Credentials(admin, key_of(neuron))
        with NeuronClient(Endpoint("127.0.0.1", recorder.port), 5.0, own) as asking:
            asking.ask(lambda r: Load(request=r, model="m"), Done)
    with client(neuron, admin) as asking:
        asking.ask(lambda r: Unload(request=r, model="m"), Done)
    before = neuron.wait_for(lambda s: s["state"]["models"][0]["status"] == "unloaded")["state"]["events"]
    said = recorder.sent()
    assert len(said) > GREETING + WELCOME  # greeting, handshake, Hello and Load
    heard = b""
    with socket.create_connection(("127.0.0.1", neuron.port), timeout=DEADLINE_S) as replay:
        replay.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while piece := replay.recv(65536):
                heard += piece
    # What whoever connects is told before it has proven that it has a key; then it is cut off.
    assert len(heard) <= GREETING + WELCOME
    status = neuron.status()
    assert status["state"]["models"][0]["status"] == "unloaded"
    assert [e["cursor"] for e in status["state"]["events"]] == [e["cursor"] for e in before]


def test_a_gateway_serves_by_key_until_it_is_revoked_and_again_once_it_is_authorised(
    neuron: Neuron, tmp_path: Path
) -> None:
    folder = tmp_path / "g"
    gateway = Gateway(folder, endpoints={"beast": neuron.endpoint}, recovery_s=0.2, node_grace_s=0.2)
    trusted = printed("cortex", "trust", "beast", key_of(neuron).hex(), "--config", config(gateway, "cortex"))
    own = trusted.split("neuronctl authorize gateway ")[1].split()[0]

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
    started = run("neuron", "--config", str(path))
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
