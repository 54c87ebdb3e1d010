"""The models that lie on this host's disks, found by walking folders and reading headers. Nothing is loaded."""

import logging
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from common.messages import DiskState
from neuron.models import access, disks, hub_cache, shards
from neuron.models.header import DamagedHeader, Header, read_header

log = logging.getLogger(__name__)

RESCAN_S = 5.0
"""A model that arrives on disk is listed after this time at the latest."""
_NAMELESS = re.compile(r"(ggml-)?model([-._].*)?")
"""File names that say nothing; the folder or the repository then gives the id."""
_NO_MODEL_TYPES = ("adapter", "mmproj", "imatrix")
"""Of `general.type`."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk."""

    id: str
    path: str
    """Its only or first file."""
    files: list[str]
    size_bytes: int
    origin: Literal["folder", "hub"]
    repo: str | None = None
    quant: str | None = None
    architecture: str | None = None
    context_train: int | None = None
    mmproj: str | None = None
    """A projector for images beside it."""
    problem: str | None = None
    """Why it cannot be served."""

    @property
    def source(self) -> str:
        """What a profile names it by."""
        return f"file:{self.path}"


class _Stamp(NamedTuple):
    size: int
    modified_ns: int
    inode: int


class Library:
    """Folders and a Hugging Face cache. `scan` may take long and block; headers are read again only when changed."""

    def __init__(self, folders: list[Path], cache: Path) -> None:
        self._folders = folders
        self._cache = cache
        self._headers: dict[str, tuple[_Stamp, Header | str]] = {}
        """By path: its header, or why it has none."""
        self.complaints: list[str] = []
        """Folders of the last scan that could not be read."""

    @property
    def folders(self) -> list[Path]:
        """Where models are looked for, the cache last."""
        return [*self._folders, self._cache]

    def scan(self) -> list[Found]:
        """Return all models, those that cannot be served with the reason."""
        self.complaints = []
        found: list[Found] = []
        files_seen: set[str] = set()
        for folder in self._folders:
            if self._is_folder(folder):
                for place, names in self._walk(folder):
                    found += self._place(place, names, files_seen, repo=None)
        for repo, snapshot in self._repositories():
            for place, names in self._walk(snapshot):
                found += self._place(place, names, files_seen, repo=repo)
        return _with_unique_ids(found)

    def _is_folder(self, path: Path) -> bool:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            absence = access.absence(str(path))
            self.complaints += [absence] if absence is not None else []
            return False
        except OSError as error:
            self.complaints.append(access.complaint(str(path), error))
            return False
        if not is_folder:
            self.complaints.append(f"{path}: is no folder")
        return is_folder

    def _repositories(self) -> list[hub_cache.Repository]:
        try:
            return hub_cache.list_repositories(self._cache)
        except OSError as error:
            self.complaints.append(access.complaint(str(self._cache), error))
            return []

    def _walk(self, top: Path) -> Iterator[tuple[Path, list[str]]]:
        """Yield folders with the GGUF files in them; links to folders are followed, each folder once."""

        def complain(error: OSError) -> None:
            self.complaints.append(access.complaint(error.filename, error))

        walked: set[str] = set()
        for place, folders, files in os.walk(top, followlinks=True, onerror=complain):
            real = os.path.realpath(place)
            if real in walked:
                folders.clear()
                continue
            walked.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            names = [f for f in files if shards.is_gguf(f)]
            if names:
                yield Path(place), names

    def _place(self, place: Path, names: list[str], seen: set[str], *, repo: str | None) -> Iterator[Found]:
        mmproj = next((str(place / n) for n in sorted(names) if "mmproj" in n.lower()), None)
        for first, files in shards.group(n for n in names if shards.is_model(n)).items():
            real = os.path.realpath(place / files[0])
            if real in seen:
                continue
            seen.add(real)
            model = self._model(place, first, files, repo, mmproj)
            if model is not None:
                yield model

    def _model(self, place: Path, first: str, files: list[str], repo: str | None, mmproj: str | None) -> Found | None:
        """Return a model, None if the files are none."""
        headers = [self._header(place / f) for f in files]
        head = headers[0]
        if isinstance(head, Header) and (
            head.text("general.type") in _NO_MODEL_TYPES or head.architecture in ("clip", "imatrix")
        ):
            return None
        known = head if isinstance(head, Header) else None
        arch = known.architecture if known else None
        return Found(
            id=_name(first, place.name, repo),
            path=str(place / files[0]),
            files=[str(place / f) for f in files],
            size_bytes=sum(h.file_bytes for h in headers if isinstance(h, Header)),
            origin="folder" if repo is None else "hub",
            repo=repo,
            quant=shards.quant_of(first),
            architecture=arch,
            context_train=known.number(f"{arch}.context_length") if known else None,
            mmproj=mmproj,
            problem=_problem(first, files, headers),
        )

    def _header(self, path: Path) -> Header | str:
        try:
            status = path.stat()
            stamp = _Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
            known = self._headers.get(str(path))
            if known is not None and known[0] == stamp:
                return known[1]
            try:
                header: Header | str = read_header(path)
            except DamagedHeader as error:
                header = str(error)
        except FileNotFoundError:
            return "its file is gone: the link leads nowhere; fetch it again"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        self._headers[str(path)] = (stamp, header)
        return header


def _problem(first: str, files: list[str], headers: list[Header | str]) -> str | None:
    missing = shards.missing_parts(first, files)
    if missing:
        return f"parts of it are missing: {', '.join(missing)}"
    for name, header in zip(files, headers, strict=True):
        prefix = f"{name}: " if len(files) > 1 else ""
        if isinstance(header, str):
            return prefix + header
        if header.is_truncated:
            return f"{prefix}it is truncated: {header.file_bytes} bytes of {header.needed_bytes}; fetch it again"
    head = headers[0]
    if isinstance(head, Header) and head.architecture is None:
        return "its header names no general.architecture"
    if not any(h.tensors for h in headers if isinstance(h, Header)):
        return "it holds no weights, only a vocabulary"
    return None


def _name(first: str, folder: str, repo: str | None) -> str:
    shard = shards.split(first)
    stem = shard.stem if shard is not None else Path(first).stem
    if _NAMELESS.fullmatch(stem.lower()):
        quant = shards.quant_of(first)
        owner = repo.partition("/")[2] if repo is not None else folder
        stem = re.sub(r"-gguf$", "", owner, flags=re.IGNORECASE) + (f"-{quant}" if quant else "")
    return re.sub(r"[\s\x00-\x1f]+", "-", stem).lower()


def _with_unique_ids(found: list[Found]) -> list[Found]:
    """Keep the id of the first model of a name; the others get repository or folder before it, then a number."""
    taken: set[str] = set()
    unique = []
    for model in found:
        name = model.id
        if name in taken:
            owner = model.repo or Path(model.path).parent.name
            name = re.sub(r"\s+", "-", f"{owner}/{model.id}").lower()
        base, number = name, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        unique.append(msgspec.structs.replace(model, id=name))
    return unique


Places = dict[str, str | None]
"""By source: the path of its file; None: it is not on this host."""


class Lookout:
    """Looks again and again in a thread of its own: a disk that hangs must hold up nothing else."""

    def __init__(
        self,
        library: Library,
        locate: Callable[[str], str | None],
        report: Callable[[list[Found], list[DiskState]], None],
        report_places: Callable[[Places], None],
    ) -> None:
        """`locate` returns a source's file. The reports are called in the thread, after each look.

        With what was found comes how full the disks are.
        """
        self._library = library
        self._locate = locate
        self._report = report
        self._report_places = report_places
        self._sources: tuple[str, ...] = ()
        self._woken = threading.Event()
        self._is_ended = False
        self._complaints: list[str] = []

    def start(self) -> None:
        """Begin with the first scan."""
        threading.Thread(target=self._run, name="lookout", daemon=True).start()

    def stop(self) -> None:
        """Report no more."""
        self._is_ended = True
        self._woken.set()

    def watch(self, sources: tuple[str, ...]) -> None:
        """Look for these now, and at each look from now on."""
        self._sources = sources
        self._woken.set()

    def _run(self) -> None:
        scanned_at = -math.inf
        while not self._is_ended:
            self._woken.clear()
            if sources := self._sources:
                places = {source: self._locate(source) for source in sources}
                if not self._is_ended:
                    self._report_places(places)
            if time.monotonic() - scanned_at >= RESCAN_S:
                self._scan()
                scanned_at = time.monotonic()
            self._woken.wait(max(0.0, scanned_at + RESCAN_S - time.monotonic()))

    def _scan(self) -> None:
        found = self._library.scan()
        if self._complaints != self._library.complaints:
            self._complaints = self._library.complaints
            for complaint in self._complaints:
                log.warning("models cannot be looked for in %s", complaint)
        space = disks.measure(self._library.folders)
        if not self._is_ended:
            self._report(found, space)
