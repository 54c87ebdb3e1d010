"""A neuron more in a file that people have written."""

from pathlib import Path

import pytest

from common.endpoint import Endpoint
from common.errors import ConfigError
from cortex.neuron_rows import add_neuron
from cortex.settings import load_settings
from tests.unit.test_bus_keys import USERS_OWN

THERE = Endpoint("new.internal", 13131)
YAML = {
    "no list": ("# ours\ngateway:\n  listen: 127.0.0.1:1 # here\n", []),
    "no file at all": ("", []),
    "an empty list": ("neurons: []\nlog:\n  level: debug\n", []),
    "nothing": ("neurons:\n\nlog:\n  level: debug\n", []),
    "indented": ("neurons:\n  - name: a\n    endpoint: tcp://a:1\n# about the log\nlog: {level: debug}\n", ["a"]),
    "not indented": ("neurons:\n- name: a\n  endpoint: tcp://a:1  # one\n- {name: b, endpoint: 'b:1'}\n", ["a", "b"]),
    "without a last line's end": ("neurons:\n    - endpoint: tcp://a:1\n      name: a", ["a"]),
}


@pytest.mark.parametrize(("text", "names"), YAML.values(), ids=YAML.keys())
def test_yaml_keeps_its_lines(text: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "cortex.yaml"
    path.write_text(text)
    add_neuron(path, "new", THERE)
    settings = load_settings(path)
    assert list(settings.neuron_endpoints()) == [*names, "new"]
    assert settings.neuron_endpoints()["new"] == THERE
    left = path.read_text().splitlines()
    assert [line for line in text.splitlines() if line and line != "neurons: []" and line not in left] == []


def test_toml_keeps_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "cortex.toml"
    path.write_text(USERS_OWN)
    add_neuron(path, "new", THERE)
    assert path.read_text().startswith(USERS_OWN)
    assert list(load_settings(path).neuron_endpoints()) == ["beast", "benjy", "new"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cortex.toml", 'neurons = [{name = "a", endpoint = "a:1"}]\n'),
        ("cortex.yaml", "neurons: [{name: a, endpoint: 'a:1'}]"),
    ],
)
def test_what_cannot_be_added_to_is_left_alone_with_the_lines_to_add(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match="add this yourself") as refused:
        add_neuron(path, "new", THERE)
    assert "tcp://new.internal:13131" in str(refused.value)
    assert path.read_text() == text
