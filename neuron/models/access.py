"""What to do about a folder of models that this user cannot read: under the unit, the drop-in that cures it."""

import grp
import os
from collections.abc import Callable, Mapping
from pathlib import Path

_HOMES = ("/home", "/root", "/run/user")
"""What a unit with ProtectHome= hides (systemd.exec(5))."""
_OWN = ("/tmp", "/var/tmp")  # noqa: S108 - these are compared with, not written to
"""What a unit with PrivateTmp= has for itself."""


def complaint(
    path: str,
    error: OSError,
    environment: Mapping[str, str] = os.environ,
    may: Callable[[Path, int], bool] = os.access,
) -> str:
    """Return one line that names the folder, what is wrong with it, and where that can be told, the remedy.

    `may`: as os.access, whether this user may do something with a folder.
    """
    line = f"{path}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return line
    barrier = _barrier(Path(path), may)
    if barrier is None:  # open by now, or closed by something else than a mode
        return line
    is_service = "INVOCATION_ID" in environment
    if is_service and str(barrier) in _HOMES:
        return f"{line}; the unit hides {barrier}: {_drop_in('ProtectHome=read-only')}"
    group = _group_let_in(barrier, is_end=str(barrier) == path)
    if is_service and group is not None:
        return f"{line}; {barrier} is open to the group {group}: {_drop_in(f'SupplementaryGroups={group}')}"
    rights = "rx" if str(barrier) == path else "x"
    return f"{line}; let the user with id {os.geteuid()} in: setfacl -m u:{os.geteuid()}:{rights} {barrier}"


def absence(path: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the same for a folder that is not there; None where nothing keeps it from being made later."""
    if "INVOCATION_ID" not in environment or not any(Path(path).is_relative_to(own) for own in _OWN):
        return None
    return f"{path}: is not there; the unit has {' and '.join(_OWN)} of its own: {_drop_in('PrivateTmp=no')}"


def _drop_in(setting: str) -> str:
    return f"`systemctl edit neuron`, add [Service] and {setting}, then `systemctl restart neuron`"


def _barrier(path: Path, may: Callable[[Path, int], bool]) -> Path | None:
    """Return the first folder on the way that may not be entered or, at its end, not be read."""
    for place in (*reversed(path.parents), path):
        if not may(place, os.X_OK | (os.R_OK if place == path else 0)):
            return place
    return None


def _group_let_in(place: Path, *, is_end: bool) -> str | None:
    """Return the group, other than root's, whose members may do what this user may not."""
    try:
        status = place.stat()
        wanted = 0o050 if is_end else 0o010
        return grp.getgrgid(status.st_gid).gr_name if status.st_gid and status.st_mode & wanted == wanted else None
    except (OSError, KeyError):
        return None
