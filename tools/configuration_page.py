"""Write docs/config.md: every key of every file, its type, default and meaning, from the structs that read them."""

import ast
import inspect
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common.catalogue import Catalogue, Profile  # noqa: E402
from cortex.settings import CortexSettings  # noqa: E402
from neuron.settings import NeuronSettings  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
FILES = {
    "cortex.toml (or .yaml): the gateway": CortexSettings,
    "neuron.yaml (or .toml): one GPU host": NeuronSettings,
    "models.yaml (or .toml): profiles and aliases": Catalogue,
}
INTRODUCTION = """\
# Configuration

Generated from the structs that read the files, with `make docs`; a test holds it against them.

Files are YAML or TOML by their suffix. An unknown or ill-typed key ends the start with its name and what is allowed.
Keys of the first two can be overridden by variables: `CORTEX_GATEWAY__WORKERS=2`, `NEURON_LISTEN=tcp://0.0.0.0:13131`;
`__` separates levels, lists and maps are in YAML notation.
"""
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", types.NoneType: "nothing"}


def render() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for title, kind in FILES.items():
        parts.append(f"\n## {title}\n\n{_sentence(kind)}\n")
        parts += _tables(kind, "", {})
    return "\n".join(parts).rstrip() + "\n"


def _tables(kind: type[Any], prefix: str, shown: dict[type[Any], str]) -> list[str]:
    """Return the table of a struct, then those of the structs in it that are not `shown` yet, under those names."""
    rows, below = [], []
    texts, defaults = _sources(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        inner = _struct(hints[field.name])
        name = f"{prefix}{field.encode_name}"
        if inner is not None:
            name += "[]" if _is_list(hints[field.name]) else ""
        text = texts.get(field.name) or (_sentence(inner) if inner is not None else "")
        if inner is not None and inner in shown:
            text = f"{text} Its keys are those of `{shown[inner]}`."
        elif inner is not None:
            shown[inner] = name
            below += ["", f"### `{name}`", "", _sentence(inner), "", *_tables(inner, f"{name}.", shown)]
        default = "required" if field.required else _default(field, defaults[field.name], inner)
        rows.append(f"| `{name}` | {_type(hints[field.name])} | {default} | {text} |".replace("  ", " "))
    return ["| key | value | default | meaning |", "|---|---|---|---|", *rows, *below]


def _sources(kind: type[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what stands under each field as its documentation, and its default as it is written."""
    texts: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, msgspec.Struct) or base is msgspec.Struct:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        name = ""
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
                defaults[name] = ast.unparse(node.value) if node.value is not None else ""
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
                texts[name] = " ".join(str(node.value.value).split())
                name = ""
            else:
                name = ""
    return texts, defaults


def _default(field: Any, written: str, inner: type[Any] | None) -> str:
    """Return a default; one that depends on the host stands in the text, and is only called so here."""
    if written.startswith("msgspec.field") and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
        return f"`{_yaml(value)}`" if isinstance(value, list) else "of this host"
    if "os." in written or "socket." in written:
        return "of this host"
    if field.default is msgspec.NODEFAULT:
        value = field.default_factory()
        return "–" if inner is not None and not isinstance(value, list | dict) else f"`{_yaml(value)}`"
    if inner is not None and isinstance(field.default, msgspec.Struct):
        return "–"
    return "unset" if field.default is None else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return "{}" if value == {} else str(value)


def _type(kind: Any) -> str:
    if kind is Any:
        return "anything"
    if typing.get_origin(kind) is typing.Annotated:
        inner, *limits = typing.get_args(kind)
        return _type(inner) + "".join(_limit(m) for m in limits if isinstance(m, msgspec.Meta))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in typing.get_args(kind) if a is not types.NoneType)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{a}`" for a in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list of {_type(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        key, value = typing.get_args(kind)
        return f"map of {_type(key)} to {_type(value)}"
    return _WORDS.get(kind, "section")


def _limit(meta: msgspec.Meta) -> str:
    low, high = (meta.ge if meta.ge is not None else meta.gt), meta.le
    if low is not None and high is not None:
        return f" {low} to {high}" if low != high else f" {low}"
    if meta.gt is not None:
        return f" > {meta.gt}"
    return f" ≥ {meta.ge}" if meta.ge is not None else ""


def _struct(kind: Any) -> type[Any] | None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for a in typing.get_args(kind) if (found := _struct(a)) is not None), None)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list or any(_is_list(a) for a in typing.get_args(kind))


def _sentence(kind: type[Any]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def undocumented() -> list[str]:
    """Return the keys that no text explains."""

    def missing(kind: type[Any], prefix: str) -> list[str]:
        texts, _ = _sources(kind)
        found = []
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            inner = _struct(hint)
            if inner is not None:
                found += missing(inner, f"{prefix}{name}.")
            elif name not in texts:
                found.append(prefix + name)
        return found

    return [m for kind in (*FILES.values(), Profile) for m in missing(kind, f"{kind.__name__}.")]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
