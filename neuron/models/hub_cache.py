"""The Hugging Face cache on this host: where it is, what repositories are in it, and what `hf:…` names there.

The layout is that of the huggingface_hub library (`models--ORG--REPO/{blobs,refs,snapshots}`), which writes it; it is
read without that library, so that a supervisor does not carry an HTTP client.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.errors import HelexaError
from neuron.models import shards

_FOLDER = "models--"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class BadReference(HelexaError):
    """What was written is no `hf:` reference, or it fits nothing; the text says what there is."""


class Reference(NamedTuple):
    """What `hf:org/repo`, `hf:org/repo:QUANT` or `hf:org/repo/file.gguf` names."""

    repo: str
    quant: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f":{self.quant}" if self.quant else "") + (f"/{self.file}" if self.file else "")


class Repository(NamedTuple):
    """A repository of the cache and the snapshot of it that counts."""

    repo: str
    snapshot: Path


def parse_reference(text: str) -> Reference:
    """Parse a reference. Raises BadReference."""
    kind, _, rest = text.partition(":")
    path, _, quant = rest.partition(":")
    parts = PurePosixPath(path).parts
    repo, file = "/".join(parts[:2]), "/".join(parts[2:]) or None
    if kind != "hf" or not _REPOSITORY.fullmatch(repo) or ".." in parts or (file and quant):
        raise BadReference(f"'{text}' is no reference; write hf:ORG/REPO, hf:ORG/REPO:QUANT or hf:ORG/REPO/FILE.gguf")
    if file is not None and not shards.is_gguf(file):
        raise BadReference(f"'{text}': '{file}' is no .gguf file; only GGUF models can be served")
    return Reference(repo, quant or None, file)


def cache_folder(configured: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the cache: as configured, else where the library itself puts it for this user."""
    if configured is not None:
        return configured
    if folder := environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def repository_folder(repo: str, cache: Path) -> Path:
    """Return where a repository of models lies in a cache."""
    return cache / (_FOLDER + repo.replace("/", "--"))


def list_repositories(cache: Path) -> list[Repository]:
    """Return the repositories of models, each with the snapshot of its main branch, else the newest one.

    Raises OSError if the folder may not be read; one that does not exist is empty.
    """
    if not cache.is_dir():
        return []
    found = []
    for folder in sorted(cache.iterdir()):
        if folder.name.startswith(_FOLDER) and (snapshot := _snapshot(folder)) is not None:
            found.append(Repository(folder.name.removeprefix(_FOLDER).replace("--", "/", 1), snapshot))
    return found


def _snapshot(folder: Path) -> Path | None:
    main = folder / "refs" / "main"
    if main.is_file():
        snapshot = folder / "snapshots" / main.read_text().strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return None
    return max((s for s in snapshots.iterdir() if s.is_dir()), key=lambda s: s.stat().st_mtime, default=None)


def find_cached(reference: Reference, cache: Path) -> Path | None:
    """Return the first file of a model that is complete in the cache, None if it is not there.

    Raises BadReference if the repository is there and the reference fits none or several of its models; OSError.
    """
    snapshot = _snapshot(repository_folder(reference.repo, cache))
    if snapshot is None:
        return None
    names = [str(p.relative_to(snapshot)) for p in snapshot.rglob("*.gguf")]
    try:
        files = choose(reference, names)
    except BadReference:
        if reference.quant is None and reference.file is None:
            raise
        return None  # another quantisation is here; this one can be fetched
    is_whole = not shards.missing_parts(files[0], files) and all((snapshot / f).is_file() for f in files)
    return snapshot / files[0] if is_whole else None


def choose(reference: Reference, names: list[str]) -> list[str]:
    """Return the files of the one model that a reference means among a repository's files, in order.

    Raises BadReference with the choices.
    """
    models = shards.group(n for n in names if shards.is_model(n))
    if not models:
        raise BadReference(f"{reference}: the repository has no GGUF model; look for one whose name ends in -GGUF")
    if reference.file is not None:
        files = next((f for first, f in models.items() if reference.file in (first, *f)), None)
        if files is None:
            raise BadReference(f"{reference}: no such file; there are: {', '.join(models)}")
        return files
    quants = {first: shards.quant_of(first) for first in models}
    if reference.quant is not None:
        wanted = reference.quant.upper()
        fitting = [first for first, quant in quants.items() if quant == wanted]
    else:
        first = next((q for q in shards.PREFERRED if q in quants.values()), None)
        fitting = [f for f, quant in quants.items() if quant == first] if first and len(models) > 1 else list(models)
    if len(fitting) == 1:
        return models[fitting[0]]
    there = ", ".join(sorted({f"{reference.repo}:{q}" if q else first for first, q in quants.items()}))
    problem = "fits several models" if fitting else "no such quantisation"
    raise BadReference(f"{reference}: {problem}; name one of: {there}")
