"""Sessions on disk: one JSON file each, replaced atomically, so that a reader sees the old one or the new one."""

import contextlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_KNOWN = ("version", "id", "cwd", "directories", "title", "created_at", "updated_at", "mode", "model", "compacted")

Entry = dict[str, Any]
"""One entry of a history: a user's message, a reply with its tool calls, or a result. Unknown keys are kept."""


class StoreError(Exception):
    """A session cannot be read; the text names the file and what to do."""


class UnknownSession(StoreError):
    """There is no such session."""


@dataclass
class Record:
    """What is kept of a session."""

    id: str
    cwd: str
    title: str = ""
    directories: list[str] = field(default_factory=list)
    created_at: float = 0.0
    updated_at: float = 0.0
    mode: str = "default"
    model: str = ""
    compacted: int = 0
    """So many entries from the start are sent to the model in short only."""
    history: list[Entry] = field(default_factory=list)
    unknown: dict[str, Any] = field(default_factory=dict)
    """Keys of a newer version."""

    def encode(self) -> bytes:
        """Return the file's content as of now."""
        known = {name: getattr(self, name) for name in _KNOWN if name != "version"}
        document = {**self.unknown, "version": VERSION, **known, "history": self.history}
        return json.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")

    @classmethod
    def decode(cls, content: bytes) -> "Record":
        """Read a file's content. Raises ValueError where it is not a session."""
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        if document.get("version") != VERSION:
            raise ValueError(f"version is {document.get('version')!r}; this program knows {VERSION}")
        for name, kind in (("id", str), ("cwd", str), ("history", list)):
            if not isinstance(document.get(name), kind):
                raise ValueError(f"{name}: missing or of the wrong type")
        if not all(isinstance(e, dict) and isinstance(e.get("role"), str) for e in document["history"]):
            raise ValueError("history: an entry without a role")
        unknown = {k: v for k, v in document.items() if k not in _KNOWN and k != "history"}
        known = {k: document[k] for k in _KNOWN if k in document and k != "version"}
        return cls(**known, history=document["history"], unknown=unknown)


def default_folder() -> Path:
    """Return where sessions lie by the XDG rules."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "helexa-acp" / "sessions"


class Store:
    """A folder of session files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, session_id: str) -> Path:
        """Return the file of a session. Raises UnknownSession for an id that cannot be one."""
        if not _ID.fullmatch(session_id):
            raise UnknownSession(f"{session_id!r} is no session id")
        return self.folder / f"{session_id}.json"

    def create(self, cwd: str, directories: list[str]) -> Record:
        """Return a new session with an id that no other process uses; nothing is written yet."""
        now = time.time()
        return Record(f"sess_{uuid.uuid4().hex}", cwd, directories=directories, created_at=now, updated_at=now)

    def load(self, session_id: str) -> Record:
        """Read a session. Raises UnknownSession, or StoreError naming a file that is damaged; it is left alone."""
        path = self.path(session_id)
        try:
            record = Record.decode(path.read_bytes())
        except FileNotFoundError:
            raise UnknownSession(f"no session {session_id} in {self.folder}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path} cannot be read ({error}); it is left as it is: repair or remove it") from error
        if record.id != session_id:
            raise StoreError(f"{path} holds the session {record.id}; it is left as it is: rename or remove it")
        return record

    def write(self, session_id: str, content: bytes) -> None:
        """Replace a session's file; on disk when this returns. Raises OSError and then leaves the old file."""
        path = self.path(session_id)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{session_id}.", suffix=".tmp", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        directory = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def sessions(self) -> Iterator[Record | StoreError]:
        """Yield every session, or the error of its file, in no order."""
        for path in self.folder.glob("*.json"):
            try:
                yield self.load(path.stem)
            except UnknownSession:
                continue  # another process has removed it
            except StoreError as error:
                yield error

    def prune(self, older_than_s: float) -> list[str]:
        """Remove sessions not written for that long, and what killed writers left; return the names removed."""
        before = time.time() - older_than_s
        removed = []
        for path in [*self.folder.glob("sess_*.json"), *self.folder.glob(".sess_*.tmp")]:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed.append(path.name)
        return sorted(removed)
