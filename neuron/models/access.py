"""What to do about a folder of models that this user may not read."""

import os
from collections.abc import Mapping
from pathlib import Path

_HOMES = ("/home", "/root", "/run/user")
"""What a unit with ProtectHome= hides (systemd.exec(5))."""


def complaint(path: str, error: OSError, environment: Mapping[str, str] = os.environ) -> str:
    """Return one line that names the folder, what is wrong with it, and where that can be told, the remedy."""
    line = f"{path}: {error.strerror}"
    if not isinstance(error, PermissionError):
        return line
    is_service, is_at_home = "INVOCATION_ID" in environment, any(Path(path).is_relative_to(home) for home in _HOMES)
    line += f"; the user with id {os.geteuid()} has to be able to read it and to enter the folders above it"
    if is_service and is_at_home:
        line += (
            ", and the unit hides home directories: `systemctl edit neuron`, add [Service] and ProtectHome=read-only"
        )
    return line
