"""Fetching a model from a Hugging Face hub into its cache: room is checked before, checksums after.

What was interrupted goes on where it stopped. HF_TOKEN, HF_ENDPOINT and proxies are the library's own business.
"""

import fcntl
import hashlib
import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # public, though not in __all__

from common.errors import HelexaError
from neuron.models import shards
from neuron.models.hub_cache import Reference, choose, repository_folder

SPARE_BYTES = 256 * 2**20
"""Left free on the disk, whatever is fetched."""
_CHUNK = 4 * 2**20
Verified = Callable[[str, int, int], None]
"""Told a file's name, the bytes that were checked, and how many there are."""


Arrived = Callable[[int, int], None]
"""Told how many bytes of a model are on this host, and how many there are in all."""


class DownloadFailed(HelexaError):
    """Nothing was fetched, or not all of it; the text says why and what to do."""


class Remote(NamedTuple):
    """A file as the hub describes it."""

    name: str
    size: int
    sha256: str | None
    """None: the hub tells none, as for files outside of its large-file storage."""


class Pulled(NamedTuple):
    """A model that is complete in the cache."""

    files: list[Path]
    size_bytes: int
    """Of all files."""
    fetched_bytes: int
    """Of those that were not there."""


def pull(
    reference: Reference,
    cache: Path,
    *,
    say: Callable[[str], None],
    verified: Verified = lambda name, done, total: None,
    arrived: Arrived = lambda done, total: None,
) -> Pulled:
    """Fetch all files of a model. `verified` is told how far a checksum is, `arrived` how far the whole.

    Raises DownloadFailed, and BadReference with the repository's models.
    """
    hub = huggingface_hub.HfApi(library_name="helexa")
    try:
        info = hub.model_info(reference.repo, files_metadata=True)
        revision, remotes = info.sha or "main", _remotes(reference, info)
        wanted = [r for r in remotes if not _is_complete(r, reference.repo, revision, cache)]
        _check_room(wanted, reference.repo, cache)
        total = sum(r.size for r in remotes)
        say(f"{reference}: {len(remotes)} files, {format_size(total)}, of which {len(wanted)} are to be fetched")
        paths, done = [], total - sum(r.size for r in wanted)
        for remote in remotes:
            is_resumable = remote.sha256 is not None and remote.size <= MAX_HTTP_DOWNLOAD_SIZE
            if remote in wanted and is_resumable:
                here = partial(lambda before, size: arrived(before + size, total), done)
                _fetch(hub, remote, reference.repo, revision, cache, verified, here)
            path = hub.hf_hub_download(reference.repo, remote.name, revision=revision, cache_dir=cache)
            paths.append(Path(path))
            done += remote.size if remote in wanted else 0
            arrived(done, total)
            if remote in wanted and not is_resumable:
                _verify(remote, paths[-1], verified)
    except GatedRepoError:
        page = f"{hub.endpoint}/{reference.repo}"
        raise DownloadFailed(f"{reference}: accept the terms at {page}, then set HF_TOKEN to your token") from None
    except RepositoryNotFoundError:
        raise DownloadFailed(
            f"{reference}: there is no such repository at {hub.endpoint}, or it is private and needs HF_TOKEN"
        ) from None
    except HFValidationError as error:
        raise DownloadFailed(f"{reference}: {error}") from None
    except HfHubHTTPError as error:
        raise DownloadFailed(f"{reference}: {hub.endpoint} answers: {error}") from None
    except OSError as error:
        raise DownloadFailed(f"{reference}: {error.strerror or error}; what has come is kept, try again") from None
    except Exception as error:
        # The library lets exceptions of its HTTP client through, whose package is not ours to depend on.
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise DownloadFailed(f"{reference}: {hub.endpoint} cannot be reached: {error}") from None
    _note_main(revision, repository_folder(reference.repo, cache))
    return Pulled(paths, total, sum(r.size for r in wanted))


def _note_main(revision: str, folder: Path) -> None:
    """Note that this snapshot is the main branch's.

    The files are fetched by its hash, so that a push meanwhile does not mix two versions; that leaves no note.
    """
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision)


def _remotes(reference: Reference, info: Any) -> list[Remote]:
    files = {s.rfilename: s for s in info.siblings or []}
    return [
        Remote(name, files[name].size or 0, files[name].lfs.sha256 if files[name].lfs else None)
        for name in _complete(choose(reference, list(files)), reference)
    ]


def _complete(files: list[str], reference: Reference) -> list[str]:
    missing = shards.missing_parts(files[0], files)
    if missing:
        raise DownloadFailed(f"{reference}: the repository itself lacks parts of it: {', '.join(missing)}")
    return files


def _is_complete(remote: Remote, repo: str, revision: str, cache: Path) -> bool:
    path = huggingface_hub.try_to_load_from_cache(repo, remote.name, cache_dir=cache, revision=revision)
    return isinstance(path, str) and Path(path).is_file()


def _check_room(wanted: list[Remote], repo: str, cache: Path) -> None:
    blobs = repository_folder(repo, cache) / "blobs"
    partial = [_partial(blobs / r.sha256) for r in wanted if r.sha256]
    needed = sum(r.size for r in wanted) - sum(p.stat().st_size for p in partial if p.is_file())
    existing = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE_BYTES > free:
        raise DownloadFailed(
            f"hf:{repo}: needs {format_size(needed)} more, and {format_size(free)} are free at {existing}; make room "
            "(neuronctl models prune, neuronctl models rm) or choose another place with --cache"
        )


def _fetch(
    hub: huggingface_hub.HfApi,
    remote: Remote,
    repo: str,
    revision: str,
    cache: Path,
    verified: Verified,
    arrived: Callable[[int], None],
) -> None:
    """Put a file's content into the cache, going on with what an earlier try left.

    The library itself begins anew after every interruption. A blob that lies in the cache under its checksum is taken
    as it is, so only checked ones get there.
    """
    blob = repository_folder(repo, cache) / "blobs" / (remote.sha256 or "")
    blob.parent.mkdir(parents=True, exist_ok=True)
    url = huggingface_hub.hf_hub_url(repo, remote.name, revision=revision, endpoint=hub.endpoint)
    with _Watched(io.FileIO(_partial(blob), "ab"), arrived) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed(f"{remote.name}: another process is fetching it; wait for that") from None
        start = file.tell()
        if start > remote.size:
            start = file.truncate(0)
        headers = build_hf_headers(library_name="helexa")
        http_get(
            url, file, resume_size=start, headers=headers, expected_size=remote.size, displayed_filename=remote.name
        )
    _verify(remote, _partial(blob), verified)
    _partial(blob).rename(blob)


class _Watched(io.BufferedWriter):
    """A file that tells its size as it grows."""

    def __init__(self, raw: io.FileIO, arrived: Callable[[int], None]) -> None:
        super().__init__(raw)
        self._arrived = arrived

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._arrived(self.tell())
        return count


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + ".incomplete")


def _verify(remote: Remote, path: Path, verified: Verified) -> None:
    """Compare a fetched file with what the hub says of it; one that differs is removed."""
    size = path.stat().st_size
    problem = f"has {size} bytes of {remote.size}" if size != remote.size else None
    if problem is None and remote.sha256 is not None:
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                done += len(piece)
                verified(remote.name, done, size)
        if digest.hexdigest() != remote.sha256:
            problem = "has another checksum than the hub says"
    if problem is not None:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DownloadFailed(f"{remote.name} {problem}; it was removed, try again")


def format_size(size: int) -> str:
    """Return a size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
