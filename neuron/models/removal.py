"""Removing models from this host's disks, and what is left over in the Hugging Face cache. Nothing else is touched."""

import time
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub.errors import CacheNotFound

from neuron.models import shards
from neuron.models.library import Found

YOUNG_S = 3600.0
"""A part of a download that was written to within this time may still be in progress."""


class LeftOver(NamedTuple):
    """What `prune` would remove, or has removed."""

    what: str
    size_bytes: int


def remove(model: Found, cache: Path) -> int:
    """Remove a model's files; return the bytes that this frees. Raises OSError."""
    if model.origin == "folder":
        freed = sum(Path(f).lstat().st_size for f in model.files)
        for file in model.files:
            Path(file).unlink()
        return freed
    info = huggingface_hub.scan_cache_dir(cache)
    # By content: the same file may stand in older snapshots too, and would keep its place on the disk.
    blobs = {Path(f).resolve() for f in model.files}
    paths = {Path(f) for f in model.files}
    cached = [f for repo in info.repos for revision in repo.revisions for f in revision.files]
    chosen = [f for f in cached if f.blob_path.resolve() in blobs or f.file_path in paths]
    strategy = info.delete_files(*chosen)
    strategy.execute()
    return strategy.expected_freed_size


def prune(cache: Path, *, is_trial: bool) -> list[LeftOver]:
    """Remove snapshots that no branch names and downloads that were given up; return them. Raises OSError.

    Only repositories of GGUF models are touched: the cache belongs to other programs as well.
    """
    try:
        info = huggingface_hub.scan_cache_dir(cache)
    except CacheNotFound:
        return []
    found = []
    ours = {
        repo
        for repo in info.repos
        if repo.repo_type == "model"
        and all(shards.is_gguf(f.file_name) for revision in repo.revisions for f in revision.files)
    }
    for repo in sorted(ours, key=lambda r: r.repo_id):
        current = repo.refs or {}
        old = [r for r in repo.revisions if current and not r.refs] + [r for r in repo.revisions if not r.files]
        if old:
            strategy = info.delete_revisions(*{r.commit_hash for r in old})
            found.append(LeftOver(f"{repo.repo_id}: snapshots that are out of date", strategy.expected_freed_size))
            if not is_trial:
                strategy.execute()
    folders = {repo.repo_path for repo in ours} | _empty_repositories(cache)
    for incomplete in sorted(info.incomplete_files, key=lambda f: str(f.file_path)):
        path = incomplete.file_path
        if path.parents[1] in folders and time.time() - path.stat().st_mtime > YOUNG_S:
            found.append(LeftOver(f"{path.parents[1].name}: a download that was given up", incomplete.size_on_disk))
            if not is_trial:
                path.unlink()
    return found


def _empty_repositories(cache: Path) -> set[Path]:
    return {p for p in cache.glob("models--*") if not any(f.is_file() for f in p.glob("snapshots/*/*"))}
