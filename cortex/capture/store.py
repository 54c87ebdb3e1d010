"""The captured requests: a file each, readable by their owner alone, the oldest of which go."""

import contextlib
import os
import re
import time
from pathlib import Path

import msgspec

from common.errors import ConfigError

HIDDEN = "(hidden)"
SECRETS = re.compile(r"sk-[A-Za-z0-9_-]{16,}|(?<=Bearer )[A-Za-z0-9._-]{8,}|hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}")
"""What looks like a key, wherever it stands: people paste them into prompts."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_SUFFIX = ".json"


class CapturedJob(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One answer, before the dialect made a reply of it."""

    prompt: str | None = None
    """As the model's template made it; None: it is no chat, or could not be rendered."""
    raw: str = ""
    """What the model wrote, its markers for reasoning and calls included."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int | None = None
    reason: str | None = None
    """Why it ended; None: it did not end well."""


class Captured(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request."""

    id: str
    at: float
    """When it ended, seconds since 1970."""
    path: str
    query: str = ""
    dialect: str
    principal: str
    model: str | None = None
    node: str | None = None
    status: int = 0
    outcome: str
    seconds: float
    request: str
    """Its body."""
    reply: str
    """The body of the reply, as it was sent."""
    is_cut: bool = False
    """Whether one of the bodies was too long to be kept whole."""
    jobs: list[CapturedJob] = []


_encode = msgspec.json.Encoder()
_decode = msgspec.json.Decoder(Captured)


class Store:
    """A folder of captured requests, which several processes may write to."""

    def __init__(self, folder: Path, *, keep: int, expire_s: float) -> None:
        """`keep`: requests. `expire_s`: seconds until one goes, whatever their number."""
        self.folder = folder
        self._keep = keep
        self._expire_s = expire_s

    def open(self) -> None:
        """Make the folder, for its owner alone. Raises ConfigError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_mode & 0o077:
                raise ConfigError(f"capture.folder: {self.folder} must not be open to others; run: chmod 700")
        except OSError as error:
            raise ConfigError(f"capture.folder: {self.folder}: {error.strerror}") from None

    def add(self, captured: Captured) -> None:
        """Write a request, and let old ones go."""
        name = f"{int(captured.at * 1000):014d}-{_UNSAFE.sub('_', captured.id)[:80]}{_SUFFIX}"
        data = SECRETS.sub(HIDDEN, _encode.encode(captured).decode()).encode()
        new = self.folder / (name + ".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        new.replace(self.folder / name)
        self.sweep()

    def sweep(self) -> None:
        """Remove what is too old or too much."""
        files = self._files()
        oldest = time.time() - self._expire_s
        for place, file in enumerate(reversed(files)):
            with contextlib.suppress(FileNotFoundError):  # another process has swept meanwhile
                if place >= self._keep or file.stat().st_mtime < oldest:
                    file.unlink()

    def all(self) -> list[Captured]:
        """Return what is there, oldest first."""
        found = []
        for file in self._files():
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                found.append(_decode.decode(file.read_bytes()))
        return found

    def find(self, id: str) -> Captured | None:
        """Return the last request of that id."""
        return next((c for c in reversed(self.all()) if c.id == id), None)

    def clear(self) -> int:
        """Remove all; return how many there were."""
        files = self._files()
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def _files(self) -> list[Path]:
        try:
            return sorted(self.folder.glob(f"*{_SUFFIX}"))
        except OSError:
            return []
