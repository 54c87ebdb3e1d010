"""state.json: written whole or not at all, and never a reason not to start."""

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from neuron.memory.saved import VERSION, Resident, Saved

log = logging.getLogger(__name__)

NAME = "state.json"


def find_state_file(configured: str | None) -> Path | None:
    """Return where the state is kept: in `configured`, else in $STATE_DIRECTORY; None: nowhere."""
    folder = configured or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(folder) / NAME if folder else None


def read_state(path: Path) -> Saved | None:
    """Return what was saved; None: nothing, or nothing that can be used, which is put aside and said."""
    try:
        content = _parse(path)
        known, foreign = _residents(content)
        saved = msgspec.convert({**content, "resident": known}, Saved)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read: %s; starting without it", path, error.strerror)
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = str(error)
    else:
        if saved.version == VERSION:
            for problem in foreign.values():
                log.warning("%s: a model stays there and is not loaded again: %s", path, problem)
            return saved
        problem = f"its version is {saved.version}, this neuron's {VERSION}"
    aside = path.with_suffix(".unusable")
    log.warning("%s is not usable: %s; keeping it as %s and starting without it", path, problem, aside.name)
    with contextlib.suppress(OSError):
        path.replace(aside)
    return None


def _parse(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def _residents(content: dict[str, Any]) -> tuple[list[Resident], dict[int, str]]:
    """Return the models that this neuron can load again, and by their places why it cannot load the others."""
    known: list[Resident] = []
    foreign: dict[int, str] = {}
    for place, row in enumerate(msgspec.convert(content.get("resident", []), list[dict[str, Any]])):
        try:
            known.append(msgspec.convert(row, Resident))
        except msgspec.ValidationError as error:
            foreign[place] = str(error)
    return known, foreign


def _not_ours(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the keys of the file that this neuron does not know, and the models that it cannot load."""
    try:
        content = _parse(path)
        _, foreign = _residents(content)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}, []
    unknown = {key: value for key, value in content.items() if key not in Saved.__struct_fields__}
    return unknown, [content["resident"][place] for place in foreign]


def write_state(path: Path, saved: Saved) -> None:
    """Replace the file. A disk that takes nothing is logged: what is kept here can be done without.

    What a newer neuron has added to the file stays in it, so that going back and forth between both loses nothing.
    """
    unknown, foreign = _not_ours(path)
    content = {**unknown, **msgspec.to_builtins(saved)}
    content["resident"] += foreign
    data = msgspec.json.format(msgspec.json.encode(content), indent=1)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{NAME}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
