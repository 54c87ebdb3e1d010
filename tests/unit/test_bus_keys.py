"""Key files, authorized_keys and known_neurons."""

import grp
import os
from pathlib import Path

import pytest

from common.endpoint import parse_endpoint
from common.errors import ConfigError
from common.keys import make_pair, parse_key, read_pair
from common.messages import Beat, Claim, Hello, Load, Status, Submit
from cortex.bus_keys import BusKeys, WatchedBusKeys, read_bus_keys, read_known, trust
from cortex.configuration import Configuration
from neuron.broker.authorized import ALLOWED, authorize, read_authorized, revoke
from neuron.settings import NeuronSettings

ONE, TWO = "ab" * 32, "cd" * 32
USERS_OWN = """\
[gateway]
listen = "0.0.0.0:31313"
metrics_listen = "0.0.0.0:31314"

[eviction]
strategy = "lru"            # lru | priority
defrag_after_cycles = 50

[[neurons]]
name = "beast"
endpoint = "http://beast.internal:13131"

[[neurons]]
name = "benjy"
endpoint = "http://benjy.internal:13131"
"""


def test_a_pair_is_for_its_owner_only_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "neuron.key"
    pair = make_pair(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_pair(path) == pair
    assert pair.secret.hex() not in repr(pair)
    assert repr(pair.secret) not in repr(pair)
    with pytest.raises(ConfigError, match="there is a key already"):
        make_pair(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_pair(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to groups; test-install does it for real")
def test_what_root_makes_in_a_services_folder_is_for_that_service_too(tmp_path: Path) -> None:
    service = next(g.gr_gid for g in grp.getgrall() if g.gr_gid)
    os.chown(tmp_path, -1, service)
    path = tmp_path / "keys" / "neuron.key"
    pair = make_pair(path)
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o640, service)
    assert (path.parent.stat().st_mode & 0o777, path.parent.stat().st_gid) == (0o750, service)
    assert read_pair(path) == pair
    for wider in (0o660, 0o644):
        path.chmod(wider)
        with pytest.raises(ConfigError, match="must not be readable by others"):
            read_pair(path)


@pytest.mark.parametrize("text", ["", "ab" * 31, "xy" * 32, "é" * 64])
def test_a_broken_key_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KEY: .* is not a public key"):
        parse_key(text, "KEY")
    path = tmp_path / "k"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no secret key"):
        read_pair(path)


def test_authorized_keys_keeps_comments_and_one_role_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "authorized_keys"
    assert read_authorized(path) == {}
    authorize(path, "gateway", ONE, "cortex on benjy")
    path.write_text("# ours\n" + path.read_text())
    authorize(path, "observer", TWO.upper(), "")
    authorize(path, "admin", ONE, "now an admin")
    assert read_authorized(path) == {ONE: "admin", TWO: "observer"}
    assert path.read_text() == f"# ours\nobserver {TWO}\nadmin {ONE} now an admin\n"
    assert revoke(path, TWO)
    assert not revoke(path, TWO)
    assert read_authorized(path) == {ONE: "admin"}


@pytest.mark.parametrize("line", ["root " + ONE, "admin", "admin 12", ONE])
def test_a_mistake_in_authorized_keys_names_its_line_and_is_not_built_upon(line: str, tmp_path: Path) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(f"admin {TWO}\n{line}\n")
    with pytest.raises(ConfigError, match="authorized_keys:2"):
        read_authorized(path)
    with pytest.raises(ConfigError, match="authorized_keys:2"):
        authorize(path, "admin", ONE, "")
    assert ONE not in path.read_text() or ONE in line


def test_roles_are_nested() -> None:
    assert ALLOWED["observer"] < ALLOWED["admin"] < ALLOWED["gateway"]
    assert {Hello, Status} <= ALLOWED["observer"]
    assert Load in ALLOWED["admin"] - ALLOWED["observer"]
    assert {Submit, Claim, Beat} <= ALLOWED["gateway"] - ALLOWED["admin"]


def test_a_comment_cannot_be_a_second_line(tmp_path: Path) -> None:
    path = tmp_path / "authorized_keys"
    for breaking in "\n\r\v\x85\u2028":
        with pytest.raises(ConfigError, match="one line"):
            authorize(path, "observer", ONE, f"x{breaking}admin {TWO}")
    assert read_authorized(path) == {}


def test_a_changed_key_of_a_neuron_is_refused_with_the_command_that_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "known_neurons"
    one, two = bytes.fromhex(ONE), bytes.fromhex(TWO)
    trust(path, "beast", one)
    trust(path, "benjy", one)
    trust(path, "beast", one)
    with pytest.raises(ConfigError, match=f"cortex trust beast {TWO} --replace"):
        trust(path, "beast", two)
    trust(path, "beast", two, other="replace")
    assert read_known(path) == {"beast": (two,), "benjy": (one,)}


def test_two_keys_are_accepted_while_one_follows_the_other(tmp_path: Path) -> None:
    path = tmp_path / "known_neurons"
    one, two = bytes.fromhex(ONE), bytes.fromhex(TWO)
    trust(path, "beast", one)
    trust(path, "beast", two, other="also")
    trust(path, "beast", one)  # said again, it changes nothing
    assert read_known(path) == {"beast": (one, two)}
    trust(path, "beast", two, other="replace")
    assert read_known(path) == {"beast": (two,)}


def test_a_gateway_that_knows_keys_needs_its_own(tmp_path: Path) -> None:
    config = tmp_path / "cortex.toml"
    assert read_bus_keys(config) == BusKeys()
    trust(tmp_path / "known_neurons", "beast", bytes.fromhex(ONE))
    with pytest.raises(ConfigError, match="cortex keygen"):
        read_bus_keys(config)
    pair = make_pair(tmp_path / "cortex.key")
    keys = read_bus_keys(config)
    (credentials,) = keys.credentials("beast")
    assert (credentials.pair, credentials.neuron) == (pair, bytes.fromhex(ONE))
    assert keys.credentials("benjy") == ()


def test_a_running_gateway_follows_its_files_but_never_back_to_plain_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, key = tmp_path / "known_neurons", tmp_path / "cortex.key"
    watched = WatchedBusKeys(tmp_path / "cortex.toml")
    assert watched.keys == BusKeys()
    pair = make_pair(key)
    assert not watched.refresh()
    trust(known, "beast", bytes.fromhex(ONE))
    assert watched.refresh()
    assert not watched.refresh()
    accepted = watched.keys
    assert accepted.known == {"beast": (bytes.fromhex(ONE),)}

    known.write_text("beast nonsense\n")
    assert not watched.refresh()
    known.unlink()
    assert not watched.refresh()
    assert watched.keys == accepted
    assert "is gone" in caplog.text

    trust(known, "beast", bytes.fromhex(TWO))
    key.unlink()
    make_pair(key)
    assert watched.refresh()
    # A neuron has tied this process's routing id to the key that it came with.
    assert watched.keys == BusKeys(pair, {"beast": (bytes.fromhex(TWO),)})
    assert "only a restart applies that" in caplog.text


def test_the_users_configuration_needs_no_key_more(tmp_path: Path) -> None:
    config = tmp_path / "cortex.toml"
    config.write_text(USERS_OWN)
    assert Configuration(config).known_neurons.keys == BusKeys()
    make_pair(tmp_path / "cortex.key")
    trust(tmp_path / "known_neurons", "beast", bytes.fromhex(ONE))
    configuration = Configuration(config)
    assert len(configuration.known_neurons.keys.credentials("beast")) == 1
    assert [str(e) for e in configuration.settings.neuron_endpoints().values()] == [
        "beast.internal:13131", "benjy.internal:13131",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("listen", "security", "is_plain"),
    [
        ("tcp://127.0.0.1:13131", None, True),
        ("tcp://localhost:13131", None, True),
        ("tcp://[::1]:13131", None, True),
        ("tcp://127.0.0.1:13131", "curve", False),
        ("tcp://0.0.0.0:13131", None, False),
        ("tcp://*:13131", None, False),
        ("tcp://[::]:13131", None, False),
        ("tcp://beast.internal:13131", None, False),
        ("tcp://0.0.0.0:13131", "plaintext", True),
    ],
)  # fmt: skip
def test_plain_text_beyond_loopback_only_where_it_is_asked_for(listen: str, security: str, is_plain: bool) -> None:
    assert NeuronSettings(listen=listen, security=security).is_plain is is_plain  # type: ignore[arg-type]
    assert parse_endpoint(listen, "listen").is_loopback is any(h in listen for h in ("127.", "localhost", "::1"))
