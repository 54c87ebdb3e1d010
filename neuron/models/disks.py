"""How full the file systems are that models lie on and are fetched to."""

import os
from collections.abc import Iterable
from pathlib import Path

from common.messages import DiskState

MIB = 2**20


def measure(folders: Iterable[Path]) -> list[DiskState]:
    """Return each file system of these folders once, under the first of them; may block as long as a disk hangs.

    A folder that is yet to be made counts as the one it will be made in. What cannot be asked is left out.
    """
    found: dict[int, DiskState] = {}
    for folder in folders:
        try:
            place = _existing(folder)
            device = place.stat().st_dev
            if device not in found:
                space = os.statvfs(place)
                found[device] = DiskState(
                    folder=str(folder),
                    total_mb=space.f_blocks * space.f_frsize // MIB,
                    free_mb=space.f_bavail * space.f_frsize // MIB,
                )
        except OSError:
            continue  # the search for models names folders that cannot be read
    return list(found.values())


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(f for f in (folder, *folder.parents) if f.exists())
