"""Adding a neuron to a configuration file that people have written: their lines, order and comments stay."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

from common.endpoint import Endpoint
from common.errors import ConfigError
from common.key_files import write_lines


def add_neuron(config: Path, name: str, endpoint: Endpoint) -> None:
    """Add a neuron to `neurons`. Raises ConfigError, with what to add by hand, where the file's way of writing it is
    not understood; the file is as it was then.
    """
    is_toml = config.suffix == ".toml"
    row = f'[[neurons]]\nname = "{name}"\nendpoint = "{endpoint.zmq}"\n' if is_toml else _yaml_row(name, endpoint, "  ")
    try:
        text = config.read_text(encoding="utf-8")
        before = _parse(text, is_toml=is_toml)
        changed = f"{text.rstrip()}\n\n{row}" if is_toml else _insert(text, name, endpoint)
        wanted = {**before, "neurons": [*(before.get("neurons") or []), {"name": name, "endpoint": endpoint.zmq}]}
        is_good = _parse(changed, is_toml=is_toml) == wanted
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError, TypeError):
        is_good = False
    if not is_good:
        raise ConfigError(f"{config}: its list of neurons cannot be added to; add this yourself:\n{row}")
    write_lines(config, changed.rstrip("\n").split("\n"))


def _parse(text: str, *, is_toml: bool) -> dict[str, Any]:
    return (tomllib.loads(text) if is_toml else yaml.safe_load(text)) or {}


def _yaml_row(name: str, endpoint: Endpoint, indent: str) -> str:
    quoted = yaml.safe_dump(name).splitlines()[0]
    return f"{indent}- name: {quoted}\n{indent}  endpoint: {endpoint.zmq}\n"


def _insert(text: str, name: str, endpoint: Endpoint) -> str:
    """Return YAML with one more neuron, at the end of the list."""
    root = yaml.compose(text)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    rows = next((value for key, value in pairs if key.value == "neurons"), None)
    if rows is None:
        return f"{text.rstrip()}\n\nneurons:\n{_yaml_row(name, endpoint, '  ')}".lstrip()
    if isinstance(rows, yaml.SequenceNode) and rows.value and not rows.flow_style:
        lines = text.splitlines(keepends=True)
        last = rows.value[-1]
        indent = lines[last.start_mark.line].partition("-")[0]
        # A block ends where the next token begins; comments before that may be about what follows.
        at = last.end_mark.line + (last.end_mark.column > 0)
        while at > last.start_mark.line + 1 and lines[at - 1].strip()[:1] in ("", "#"):
            at -= 1
        before = "".join(lines[:at])
        return "".join([before, "" if before.endswith("\n") else "\n", _yaml_row(name, endpoint, indent), *lines[at:]])
    if not rows.value:  # nothing, or []
        begin, end = rows.start_mark.index, rows.end_mark.index
        return f"{text[:begin].rstrip()}\n{_yaml_row(name, endpoint, '  ')}{text[end:].lstrip(chr(10))}"
    return text
