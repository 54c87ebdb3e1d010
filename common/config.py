"""Configuration files: YAML or TOML by suffix, environment overrides, errors that name file and key.

The structs live with their program (neuron.settings, cortex.settings); this module only fills them.
"""

import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from common.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def load_file(path: Path, kind: type[T], *, env_prefix: str | None = None) -> T:
    """Read `path` into the frozen struct `kind`.

    With `env_prefix`, variables `PREFIX_KEY` and `PREFIX_KEY__SUBKEY` override keys; lists and maps are in YAML
    notation. Raises ConfigError naming file or variable, key path, and what is allowed.
    """
    data = _parse(path)
    origin = str(path)
    if env_prefix is not None:
        names = _override(data, kind, env_prefix, os.environ)
        if names:
            origin += f" (with {', '.join(names)} from the environment)"
    return convert(data, kind, origin)


def convert(data: object, kind: type[T], origin: str) -> T:
    """Check plain data against the struct `kind`; `origin` is what errors name as the file."""
    _refuse_unknown_keys(data, kind, "", origin)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_readable(str(error), kind)}") from None


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ConfigError(f"{path}: unknown file type '{path.suffix}'; use .yaml, .yml or .toml")
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold keys and values at the top, not a {type(data).__name__}")
    return data


def _override(data: dict[str, Any], kind: type[Any], prefix: str, environ: Mapping[str, str]) -> list[str]:
    """Write PREFIX_… variables into `data`; return the names that were used."""
    used = []
    for name in sorted(environ):
        if not name.startswith(prefix):
            continue
        keys = name[len(prefix) :].lower().split("__")
        if keys[0] not in _fields(kind):
            continue  # CORTEX_ADMIN_KEY and the like are no configuration keys
        at, leaf = data, kind
        for key in keys[:-1]:
            leaf = _fields(leaf).get(key, object)
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{name}: '{key}' is not a section")
        leaf = _fields(leaf).get(keys[-1], object)
        value = environ[name]
        at[keys[-1]] = value if _is_text(leaf) else yaml.safe_load(value)
        used.append(name)
    return used


def _refuse_unknown_keys(data: object, kind: Any, path: str, origin: str) -> None:
    """Walk `data` beside the type, so that an unknown key is answered with the ones there are."""
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, msgspec.Struct) and isinstance(data, dict):
            fields = _fields(member)
            for key, value in data.items():
                if key not in fields:
                    known = ", ".join(sorted(fields)) or "none"
                    refused = getattr(member, "refused", {}).get(key)
                    raise ConfigError(f"{origin}: {path}{key}: {refused or f'unknown key; allowed here: {known}'}")
                _refuse_unknown_keys(value, fields[key], f"{path}{key}.", origin)
        elif typing.get_origin(member) is dict and isinstance(data, dict):
            for key, value in data.items():
                _refuse_unknown_keys(value, typing.get_args(member)[1], f"{path}{key}.", origin)
        elif typing.get_origin(member) in (list, tuple) and isinstance(data, list):
            for index, value in enumerate(data):
                _refuse_unknown_keys(value, typing.get_args(member)[0], f"{path.rstrip('.')}[{index}].", origin)


def _fields(kind: Any) -> dict[str, Any]:
    """Map the key names of a struct, or of the struct among a union's members, to their types."""
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            hints = typing.get_type_hints(member)
            return {f.encode_name: hints[f.name] for f in msgspec.structs.fields(member)}
    return {}


def _members(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(m for arg in typing.get_args(kind) for m in _members(arg))
    return (kind,)


def _is_text(kind: Any) -> bool:
    members = _members(kind)
    return str in members and not any(typing.get_origin(m) is list for m in members)


_WORDS = {
    "`object`": "a section",
    "`array`": "a list",
    "`str`": "text",
    " | null`": "`",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
}


def _readable(text: str, kind: Any) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.a.b`" into "a.b: expected a whole number, got text"."""
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?", text, re.DOTALL)
    assert match is not None
    message, path = match.groups()
    for code, word in _WORDS.items():
        message = message.replace(code, word)
    message = message[:1].lower() + message[1:]
    choices = _choices(kind, path) if path else []
    if choices:
        message += f"; allowed: {', '.join(choices)}"
    return f"{path}: {message}" if path else message


def _choices(kind: Any, path: str) -> list[str]:
    """Return the words that are allowed at a path, none where it takes other values only."""
    for name in path.replace("[...]", ".[]").replace("[", ".[").split("."):
        if name.startswith("["):
            kind = next((typing.get_args(m)[-1] for m in _members(kind) if typing.get_origin(m) in (list, dict)), None)
        elif name:
            kind = _fields(kind).get(name)
    members = _members(kind)
    words = [str(value) for m in members if typing.get_origin(m) is typing.Literal for value in typing.get_args(m)]
    plain = {bool: ["true", "false"], int: ["a whole number"]}
    return words + [word for m in members for word in plain.get(m, [])] if words else []
