"""Files of keys, as administrators make them for a service: beside its configuration, and the service's own."""

import contextlib
import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError

Stamp = tuple[int, int, int]
"""What tells a file from the one that was there before: modification time, size, inode."""


def stamp(path: Path) -> Stamp | None:
    """Return what a file looks like now; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_lines(path: Path) -> list[str]:
    """Return a file's lines; one that is not there has none. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Replace a file at once; it keeps owner and mode. Raises ConfigError."""
    new = path.with_name(path.name + ".new")
    try:
        make_folder(path.parent)
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        if path.exists():
            status = path.stat()
            os.chmod(new, status.st_mode & 0o777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(new, status.st_uid, status.st_gid)
        else:
            hand_over(new)
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Make a folder of keys unless it is there. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(mode=0o750, parents=True)
        hand_over(folder)


def hand_over(path: Path) -> None:
    """Give what root has made to the service that the folder around it is for. Raises OSError.

    That is the folder's owner; of a folder of root's with a service's group, the user who is called like that group.
    """
    around = path.parent.stat()
    if os.geteuid() != 0 or (around.st_uid, around.st_gid) == (0, 0):
        return
    uid = around.st_uid
    if uid == 0:
        with contextlib.suppress(KeyError):
            uid = pwd.getpwnam(grp.getgrgid(around.st_gid).gr_name).pw_uid
    os.chown(path, uid, around.st_gid)
