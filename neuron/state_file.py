"""state.json: written whole or not at all, and never a reason not to start."""

import contextlib
import logging
import os
import tempfile
from pathlib import Path

import msgspec

from neuron.memory.saved import VERSION, Saved

log = logging.getLogger(__name__)

NAME = "state.json"


def find_state_file(configured: str | None) -> Path | None:
    """Return where the state is kept: in `configured`, else in $STATE_DIRECTORY; None: nowhere."""
    folder = configured or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(folder) / NAME if folder else None


def read_state(path: Path) -> Saved | None:
    """Return what was saved; None: nothing, or nothing that can be used, which is put aside and said."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Saved)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read: %s; starting without it", path, error.strerror)
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = str(error)
    else:
        if saved.version == VERSION:
            return saved
        problem = f"its version is {saved.version}, this neuron's {VERSION}"
    aside = path.with_suffix(".unusable")
    log.warning("%s is not usable: %s; keeping it as %s and starting without it", path, problem, aside.name)
    with contextlib.suppress(OSError):
        path.replace(aside)
    return None


def _unknown(path: Path) -> dict[str, msgspec.Raw]:
    """Return the keys of the file that are not ours."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return {key: value for key, value in content.items() if key not in Saved.__struct_fields__}


def write_state(path: Path, saved: Saved) -> None:
    """Replace the file. A disk that takes nothing is logged: what is kept here can be done without.

    What a newer neuron has added to the file stays in it, so that going back and forth between both loses nothing.
    """
    content = _unknown(path) | msgspec.json.decode(msgspec.json.encode(saved), type=dict[str, msgspec.Raw])
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
