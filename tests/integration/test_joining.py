"""One line, pasted: a neuron's invitation gives a gateway its place, once."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from common.errors import Code
from common.keys import Credentials, KeyPair, make_pair, pair_of
from common.messages import Done, Join, NodeState, Refused, Status
from cortex.configuration import Configuration
from neuron.broker.authorized import read_authorized
from neuron.broker.invitations import invite
from tests.support.bus_keys import config, key_of, printed, run, wait_until
from tests.support.bus_peer import BusPeer, hello
from tests.support.fake_engine import write_model
from tests.support.harness import Gateway, Neuron
from tests.support.streams import chat


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neuron]:
    folder = tmp_path_factory.mktemp("joining")
    models = [{"id": "m", "source": f"file:{write_model(folder / 'm.json', token_s=0.0)}", "vram_mb": 200}]
    with Neuron(folder / "n", models=models, engine="tests.support.fake_engine", security="curve") as started:
        yield started


def authorized(neuron: Neuron) -> dict[str, str]:
    return dict(read_authorized(neuron.folder / "keys" / "authorized_keys"))


def invited(neuron: Neuron, *arguments: str) -> list[str]:
    """Return the words after `cortex` of the line that the neuron's host prints."""
    line = printed("neuron", "invite", *arguments, "--config", config(neuron))
    assert line.count("\n") == 1
    words = line.split()
    assert words[0] == "cortex"
    return words[1:]


def invitation(neuron: Neuron, lasts_s: float = 60.0) -> KeyPair:
    return invite(neuron.folder / "keys" / "invitations", time.time(), lasts_s)


def test_a_line_that_is_pasted_makes_a_running_gateway_serve(neuron: Neuron, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "g", endpoints={"beast": neuron.endpoint})
    with gateway:
        there = ("--config", config(gateway, "cortex"))
        line = invited(neuron)
        assert line[:3] == ["join", "beast", f"127.0.0.1:{neuron.port}"]
        before = set(authorized(neuron))
        joined = printed("cortex", *line, *there)
        assert "was added" not in joined  # its configuration names that neuron already
        (own,) = set(authorized(neuron)) - before
        assert authorized(neuron)[own] == "gateway"
        url = f"{gateway.url}/v1/chat/completions"
        wait_until(lambda: httpx.post(url, json=chat("m", "x", max_tokens=2), timeout=30).is_success, gateway)

        again = run("cortex", *line, *there)
        assert again.returncode == 1
        assert "has been used, or is over" in again.stderr
        assert line[-1] not in neuron.log + gateway.log + joined


def test_a_neuron_is_added_to_the_configuration_with_its_key(neuron: Neuron, tmp_path: Path) -> None:
    path = tmp_path / "cortex.toml"
    path.write_text('# ours\n[[neurons]]\nname = "benjy"\nendpoint = "http://benjy.internal:13131"  # in the cellar\n')
    line = invited(neuron, "--address", f"127.0.0.1:{neuron.port}")
    assert "restart the gateway" in printed("cortex", *line, "--config", str(path))
    configuration = Configuration(path)
    assert {n: str(e) for n, e in configuration.settings.neuron_endpoints().items()} == {
        "benjy": "benjy.internal:13131",
        "beast": f"127.0.0.1:{neuron.port}",
    }
    (credentials,) = configuration.known_neurons.keys.credentials("beast")
    assert credentials.neuron == key_of(neuron)
    assert authorized(neuron)[credentials.pair.public.hex()] == "gateway"
    assert path.read_text().startswith("# ours\n")
    assert "# in the cellar" in path.read_text()
    with BusPeer(neuron.endpoint, credentials) as peer:
        peer.send(hello(peer.incarnation, "gateway"))
        assert isinstance(peer.receive(), NodeState)


def test_an_invitation_is_good_for_joining_only(neuron: Neuron) -> None:
    own = Credentials(invitation(neuron), key_of(neuron))
    with BusPeer(neuron.endpoint, own) as peer:
        for message in (hello(peer.incarnation), Status(request="r")):
            peer.send(message)
            answer = peer.receive()
            assert isinstance(answer, Refused)
            assert answer.code is Code.PERMISSION_DENIED


def test_nobody_joins_twice_nor_writes_a_second_line_by_a_comment(neuron: Neuron, tmp_path: Path) -> None:
    own = Credentials(invitation(neuron), key_of(neuron))
    key, smuggled = (make_pair(tmp_path / name).public.hex() for name in "ab")
    with BusPeer(neuron.endpoint, own) as peer:
        peer.send(Join(request="1", key="nonsense"))
        refused = peer.receive()
        assert isinstance(refused, Refused)
        assert refused.code is Code.INVALID_VALUE
        peer.send(Join(request="2", key=key, comment=f"x\u2028admin {smuggled}"))
        assert isinstance(peer.receive(), Done)
        peer.send(Join(request="3", key=smuggled))
        assert peer.receive(0.5) is None
    assert authorized(neuron)[key] == "gateway"
    assert smuggled not in authorized(neuron)


def test_an_invitation_ends_by_itself(neuron: Neuron) -> None:
    pair = invitation(neuron, lasts_s=1.5)
    own = Credentials(pair, key_of(neuron))
    with BusPeer(neuron.endpoint, own) as peer:
        wait_until(lambda: peer.is_connected, neuron)
        time.sleep(1.5)
        peer.send(Join(request="1", key=pair.public.hex()))
        assert peer.receive(0.5) is None
    assert pair.public.hex() not in authorized(neuron)
    with BusPeer(neuron.endpoint, own) as late:
        assert not late.wait_connected(0.5)


def test_another_neuron_at_the_address_is_told(neuron: Neuron, tmp_path: Path) -> None:
    path = tmp_path / "cortex.yaml"
    path.write_text("neurons: []\n")
    other, line = make_pair(tmp_path / "other"), invited(neuron)
    done = run("cortex", *line[:3], other.public.hex(), line[4], "--config", str(path))
    assert done.returncode == 1
    assert "has another key by now" in done.stderr
    assert path.read_text() == "neurons: []\n"
    assert pair_of(bytes.fromhex(line[4])).public.hex() not in authorized(neuron)


def test_a_neuron_in_plain_text_is_added_without_keys(tmp_path: Path) -> None:
    (tmp_path / "neuron.yaml").write_text("name: benjy\nlisten: tcp://0.0.0.0:13131\nsecurity: plaintext\n")
    path = tmp_path / "cortex.yaml"
    path.write_text("neurons:\n  - name: beast\n    endpoint: http://beast.internal:13131\n\n# the end\n")
    words = printed("neuron", "invite", "--config", str(tmp_path / "neuron.yaml")).split()
    assert len(words) == 4
    printed(*words, "--config", str(path))
    configuration = Configuration(path)
    assert list(configuration.settings.neuron_endpoints()) == ["beast", "benjy"]
    assert configuration.known_neurons.keys.credentials("benjy") == ()
