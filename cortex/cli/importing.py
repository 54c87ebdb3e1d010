"""`cortex import`: another program's file becomes a models file; what has no equivalent is listed."""

import sys
from pathlib import Path

import yaml

from common.catalogue import Catalogue
from common.config import convert
from common.errors import ConfigError
from cortex.cli.foreign import READERS

DONE, FAILED = 0, 1


def run_import(kind: str, file: Path, output: Path | None, name: str | None) -> int:
    """Print or write the models file; return the exit status. Raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    try:
        imported = READERS[kind](text, name or _name(file))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    for model in imported.models:
        if model["source"].startswith("."):  # next to that file, not below model_dirs
            model["source"] = f"file:{(file.resolve().parent / model['source']).resolve()}"
    ids = {m["id"] for m in imported.models}
    for alias in ids & imported.aliases.keys():
        imported.notes.append(f"alias {alias}: is also the id of a model")
        del imported.aliases[alias]
    content = {"models": imported.models, "aliases": imported.aliases}
    convert(content, Catalogue, str(file))
    written = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    for note in imported.notes:
        print(f"not taken over: {note}", file=sys.stderr)
    if not imported.models:
        print(f"cortex: {file}: no model of it can be taken over", file=sys.stderr)
        return FAILED
    if output is None:
        print(written, end="")
        return DONE
    try:
        with output.open("x", encoding="utf-8") as target:
            target.write(written)
    except FileExistsError:
        raise ConfigError(f"--output: {output} exists; choose another name, and merge the two") from None
    except OSError as error:
        raise ConfigError(f"--output: {output}: {error.strerror}") from None
    print(f"{output}: {len(imported.models)} models, {len(imported.aliases)} aliases", file=sys.stderr)
    return DONE


def _name(file: Path) -> str:
    """Return an id for a file that names no model: its own name, or its folder's where it is just "Modelfile"."""
    stem = file.resolve().parent.name if file.stem.lower() == "modelfile" else file.stem
    return stem.lower() or "model"
