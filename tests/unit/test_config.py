"""Configuration files are read as documented, and every error names file, key, and what is allowed."""

from pathlib import Path

import pytest

from common.catalogue import find_catalogue, load_catalogue
from common.endpoint import Endpoint, parse_endpoint
from common.errors import ConfigError
from cortex import settings as cortex
from neuron import settings as neuron

EXAMPLES = Path(__file__).parents[2] / "examples"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_examples_are_accepted_as_they_stand() -> None:
    host = neuron.load_settings(EXAMPLES / "neuron.yaml")
    assert (host.name, len(host.devices), host.preload) == ("beast", 2, ["smollm2-135m-instruct"])
    catalogue_file = find_catalogue(EXAMPLES / "neuron.yaml", host.models_config)
    assert catalogue_file is not None
    catalogue = load_catalogue(catalogue_file)
    assert catalogue.resolve("default") == "smollm2-135m-instruct"
    gateway = cortex.load_settings(EXAMPLES / "cortex.toml")
    assert gateway.neuron_endpoints()["benjy"] == Endpoint("benjy.internal", 13131)
    assert gateway.eviction_message().defrag_after_cycles == 50


def test_toml_and_yaml_mean_the_same(tmp_path: Path) -> None:
    toml = write(tmp_path, "models.toml", '[[models]]\nid = "a"\nsource = "a.gguf"\nparallel = 2\n[aliases]\nb = "a"\n')
    yaml = write(tmp_path, "models.yaml", "models:\n  - {id: a, source: a.gguf, parallel: 2}\naliases: {b: a}\n")
    assert load_catalogue(toml) == load_catalogue(yaml)


SEED_TOML = """
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
SEED_YAML = """
gateway:
  listen: 0.0.0.0:31313
  metrics_listen: 0.0.0.0:31314
eviction:
  strategy: lru
  defrag_after_cycles: 50
neurons:
  - name: beast
    endpoint: http://beast.internal:13131
  - name: benjy
    endpoint: tcp://benjy.internal:13131
"""


def test_the_seed_configuration_and_its_yaml_twin_give_the_same_fleet(tmp_path: Path) -> None:
    toml = cortex.load_settings(write(tmp_path, "cortex.toml", SEED_TOML))
    yaml = cortex.load_settings(write(tmp_path, "cortex.yaml", SEED_YAML))
    hosts = {n: Endpoint(f"{n}.internal", 13131) for n in ("beast", "benjy")}
    assert toml.neuron_endpoints() == yaml.neuron_endpoints() == hosts
    assert (toml.gateway, toml.listen, toml.eviction_message()) == (yaml.gateway, yaml.listen, yaml.eviction_message())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("devices:\n  - {kind: cpu, memry_mb: 1}\n", r"devices\[0\]\.memry_mb: unknown key; allowed here: .*memory_mb"),
        ("restart: {backoff_s: soon}\n", r"restart\.backoff_s: expected a number, got text"),
        ("restart: 3\n", r"restart: expected a section, got a whole number"),
        ("listen: nowhere\n", r"listen: 'nowhere' is not an address; write host:port"),
        ("devices:\n  - {kind: cpu}\n", r"devices\[0\]\.memory_mb: is required"),
        ("devices:\n  - {name: a, uuid: b}\n", r"devices\[0\]: needs exactly one of uuid, name, pci"),
        ("devices:\n  - {uuid: b, memory_mb: 5}\n", r"devices\[0\]\.memory_mb: .*test_only"),
        ("name: [", r"while parsing"),
        ("- a\n- b\n", r"must hold keys and values"),
        ("name: 'two words'\n", r"name: expected text matching"),
    ],
)
def test_a_bad_neuron_file_is_refused_by_file_key_and_what_is_allowed(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, "neuron.yaml", text)
    with pytest.raises(ConfigError, match=expected) as caught:
        neuron.load_settings(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        neuron.load_settings(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"unknown file type '\.ini'"):
        neuron.load_settings(write(tmp_path, "neuron.ini", ""))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        neuron.load_settings(tmp_path / "latin.yaml")


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "neuron.yaml", "name: beast\nrestart: {backoff_s: 3.0}\n")
    monkeypatch.setenv("NEURON_NAME", "007")
    monkeypatch.setenv("NEURON_RESTART__BACKOFF_S", "0.25")
    monkeypatch.setenv("NEURON_PRELOAD", "[a, b]")
    monkeypatch.setenv("NEURON_UNRELATED", "x")
    settings = neuron.load_settings(path)
    assert (settings.name, settings.restart.backoff_s, settings.preload) == ("007", 0.25, ["a", "b"])


def test_a_bad_override_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "cortex.toml", "")
    monkeypatch.setenv("CORTEX_GATEWAY__WORKERS", "many")
    monkeypatch.setenv("CORTEX_ADMIN_KEY", "is no key of the configuration")
    with pytest.raises(ConfigError, match=r"CORTEX_GATEWAY__WORKERS.*gateway\.workers: expected a whole number"):
        cortex.load_settings(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [{id: a, source: x}, {id: a, source: y}]", r"models\[1\]\.id: 'a' is given twice"),
        ("models: [{id: a, source: x}]\naliases: {a: a}", r"aliases\.a: is also the id of a model"),
        ("models: [{id: a, source: x}]\naliases: {b: c}", r"aliases\.b: no model 'c' .* known: a"),
        ("models: [{id: a}]", r"models\[0\]: object missing required field `source`"),
        ("models: [{id: a, source: x, parallel: 0}]", r"models\[0\]\.parallel: expected a whole number >= 1"),
        ("models: [{id: a, source: x, min_devices: 0}]", r"models\[0\]\.min_devices: expected a whole number >= 1"),
        ("models: [{id: a, source: x, lora: y}]", r"models\[0\]\.lora: unknown key"),
    ],
)
def test_a_bad_models_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_catalogue(write(tmp_path, "models.yaml", text))


def test_the_models_file_is_looked_for_beside_the_configuration_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, "cortex.toml", "")
    monkeypatch.chdir("/")
    assert find_catalogue(config, None) is None
    expected = write(tmp_path, "models.toml", "")
    assert find_catalogue(config, None) == expected
    assert find_catalogue(config, "sub/m.yaml") == tmp_path / "sub" / "m.yaml"


@pytest.mark.parametrize("text", ["tcp://a.b:1", "http://a.b:1", "a.b:1", "http://a.b:1/"])
def test_every_spelling_of_an_address_means_the_same(text: str) -> None:
    assert parse_endpoint(text, "x") == Endpoint("a.b", 1)


@pytest.mark.parametrize("text", ["", "a", "a:0", "a:65536", "ftp://a:1", "a b:1", "http://a:1/path", "tcp://:1"])
def test_what_is_no_address_is_refused_with_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match="the-key"):
        parse_endpoint(text, "the-key")


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert parse_endpoint("tcp://[::1]:13131", "x").zmq == "tcp://[::1]:13131"


def test_two_neurons_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = "neurons: [{name: a, endpoint: 'x:1'}, {name: a, endpoint: 'y:1'}]"
    with pytest.raises(ConfigError, match="'a' is given twice"):
        cortex.load_settings(write(tmp_path, "cortex.yaml", rows))


def test_admin_keys_come_from_a_list_or_a_private_file(tmp_path: Path) -> None:
    long = "k" * 20
    config = write(tmp_path, "cortex.yaml", f"gateway: {{admin_keys: [{long}]}}")
    assert cortex.admin_keys(cortex.load_settings(config), config) == {long}
    config = write(tmp_path, "cortex.yaml", "gateway: {admin_keys: keys}")
    keys = write(tmp_path, "keys", f"# mine\n{long}\n\n")
    keys.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        cortex.admin_keys(cortex.load_settings(config), config)
    keys.chmod(0o600)
    assert cortex.admin_keys(cortex.load_settings(config), config) == {long}
    keys.write_text("short\n")
    with pytest.raises(ConfigError, match="shorter than 16"):
        cortex.admin_keys(cortex.load_settings(config), config)
