"""Models on disk are found and judged by their headers; what is broken is listed with the reason."""

import os
import queue
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGML_QUANT_SIZES

from common.messages import DiskState
from neuron.models import disks, hub_cache
from neuron.models.header import BLOCKS, DamagedHeader, Header, read_header
from neuron.models.library import Found, Library, Lookout, Places
from tests.support.gguf_files import CONTEXT, truncate, write_sharded, write_tiny


def scan(*folders: Path, cache: Path | None = None) -> dict[str, Found]:
    return {m.id: m for m in Library(list(folders), cache or Path("/nowhere")).scan()}


def cached(cache: Path, repo: str, revision: str, *, is_main: bool = True) -> Path:
    """Return a snapshot's folder in a cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    if is_main:
        (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_header_tells_the_file_s_needed_size_to_the_byte(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    header = read_header(path)
    assert (header.architecture, header.number("llama.context_length"), header.tensors) == ("llama", CONTEXT, 11)
    # The writer fills the last tensor up to the alignment; what the tensor needs is at most that much less.
    assert 0 <= header.file_bytes - header.needed_bytes < 32
    truncate(path, header.file_bytes - header.needed_bytes)
    assert not read_header(path).is_truncated
    truncate(path, 1)
    assert read_header(path).is_truncated


def test_the_sizes_of_tensor_types_are_those_of_ggml() -> None:
    assert {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} == BLOCKS


def head(*, version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "no GGUF file"),
        (b"GGUF", "cut off: the file ends at byte 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (head(version=1), "version 1"),
        (head(keys=2**63), "claims 0 tensors and"),
        (head(tensors=2**40), "claims 1099511627776 tensors"),
        (head(keys=1, rest=struct.pack("<Q", 2**62)), "a name of"),
        (head(keys=1, rest=text(b"k") + struct.pack("<I", 77)), "77 is no type"),
        (head(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + b"\0" * 800), "cut off"),
        (head(keys=1, rest=text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**63)), "cut off"),
        (head(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 5)), "9 is no type"),
        (head(keys=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
        (head(tensors=1, rest=text(b"t") + struct.pack("<I", 4_000_000)), "4000000 dimensions"),
    ],
)
def test_a_damaged_or_hostile_header_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(DamagedHeader, match=words):
        read_header(path)


def test_a_huge_header_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(head(keys=1, rest=text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)))
        file.truncate(2**40)  # sparse: a terabyte of empty strings
    began = time.monotonic()
    with pytest.raises(DamagedHeader, match="larger than 64 MiB"):
        read_header(path)
    assert time.monotonic() - began < 10


def test_every_kind_of_model_is_listed_once_and_what_is_broken_with_its_reason(tmp_path: Path) -> None:
    write_tiny(tmp_path / "Good Model-Q4_K_M.gguf")
    write_tiny(tmp_path / "good-model-Q8_0.gguf")
    write_tiny(tmp_path / "deep" / "er" / "model-f16.gguf")
    write_tiny(tmp_path / "vision" / "seer-Q4_0.gguf")
    write_tiny(tmp_path / "vision" / "mmproj-seer-f16.gguf", arch="clip")
    write_tiny(tmp_path / "adapter.gguf", general__type="adapter")
    write_tiny(tmp_path / "strange.gguf", arch="architecture-of-2031")
    write_sharded(tmp_path / "big", "large")
    (write_sharded(tmp_path / "lacking", "lack")[1]).unlink()
    truncate(write_sharded(tmp_path / "cut", "short")[2])
    truncate(write_tiny(tmp_path / "half.gguf"))
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "again.gguf").symlink_to(tmp_path / "half.gguf")
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    models = scan(tmp_path, tmp_path / "deep", tmp_path / "absent")
    problems = {name: m.problem for name, m in models.items() if m.problem is not None}
    # Of a file with two names the first in order counts.
    assert set(models) - set(problems) == {
        "good-model-q4_k_m", "good-model-q8_0", "er-f16", "seer-q4_0", "strange", "large",
    }  # fmt: skip
    assert problems.keys() == {"again", "lack", "short", "page", "dangling"}
    assert "parts of it are missing: lack-00002-of-00003.gguf" in (problems["lack"] or "")
    assert "short-00003-of-00003.gguf: it is truncated" in (problems["short"] or "")
    assert "truncated" in (problems["again"] or "")
    assert "no GGUF file" in (problems["page"] or "")
    assert "leads nowhere" in (problems["dangling"] or "")
    assert models["seer-q4_0"].mmproj == str(tmp_path / "vision" / "mmproj-seer-f16.gguf")
    large = models["large"]
    assert (len(large.files), Path(large.path).name) == (3, "large-00001-of-00003.gguf")
    assert large.size_bytes == sum(Path(f).stat().st_size for f in large.files)
    assert (large.quant, models["good-model-q8_0"].quant) == (None, "Q8_0")


def test_the_same_name_in_two_places_gives_two_ids(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a" / "m.gguf")
    write_tiny(tmp_path / "b" / "m.gguf")
    write_tiny(cached(tmp_path / "hub", "Org/Repo-GGUF", "r1") / "m.gguf")
    assert set(scan(tmp_path / "a", tmp_path / "b", cache=tmp_path / "hub")) == {"m", "b/m", "org/repo-gguf/m"}


def test_the_cache_shows_the_main_snapshot_and_names_the_repository(tmp_path: Path) -> None:
    write_tiny(cached(tmp_path, "Org/Repo-GGUF", "old", is_main=False) / "old.gguf")
    write_tiny(cached(tmp_path, "Org/Repo-GGUF", "new") / "sub" / "new-Q4_0.gguf")
    write_tiny(cached(tmp_path, "Org/Other-GGUF", "x", is_main=False) / "model-Q8_0.gguf")
    (tmp_path / "models--Org--Repo-GGUF" / "blobs").mkdir()
    (tmp_path / "models--Org--Repo-GGUF" / "blobs" / "abc.incomplete").touch()
    models = scan(cache=tmp_path)
    assert {m.id: m.repo for m in models.values()} == {"new-q4_0": "Org/Repo-GGUF", "other-q8_0": "Org/Other-GGUF"}


def test_a_reference_finds_its_files_only_when_they_are_all_there(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "org/repo", "r1")
    parts = write_sharded(snapshot, "m-Q8_0")
    small = write_tiny(snapshot / "m-Q4_K_M.gguf")
    find = hub_cache.find_cached
    assert find(hub_cache.parse_reference("hf:org/repo"), tmp_path) == small
    assert find(hub_cache.parse_reference("hf:org/repo:q8_0"), tmp_path) == parts[0]
    assert find(hub_cache.parse_reference("hf:org/repo/m-Q8_0-00002-of-00003.gguf"), tmp_path) == parts[0]
    assert find(hub_cache.parse_reference("hf:org/repo:Q6_K"), tmp_path) is None
    assert find(hub_cache.parse_reference("hf:org/absent"), tmp_path) is None
    parts[1].unlink()
    assert find(hub_cache.parse_reference("hf:org/repo:Q8_0"), tmp_path) is None


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    reads: list[Path] = []

    def read(path: Path) -> Header:
        reads.append(path)
        return read_header(path)

    monkeypatch.setattr("neuron.models.library.read_header", read)
    library = Library([tmp_path], Path("/nowhere"))
    assert [library.scan()[0].problem, library.scan()[0].problem, len(reads)] == [None, None, 1]
    truncate(path)
    assert "truncated" in (library.scan()[0].problem or "")
    assert len(reads) == 2


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    library = Library([tmp_path / "file"], Path("/nowhere"))
    assert library.scan() == []
    assert library.complaints == [f"{tmp_path / 'file'}: is no folder"]


def test_the_lookout_reports_until_it_is_stopped(tmp_path: Path) -> None:
    write_tiny(tmp_path / "m.gguf")
    seen: queue.SimpleQueue[tuple[list[Found], list[DiskState]]] = queue.SimpleQueue()
    told: queue.SimpleQueue[Places] = queue.SimpleQueue()
    places = {"m.gguf": "/m.gguf"}
    library = Library([tmp_path], tmp_path / "yet to be made")
    lookout = Lookout(library, places.get, lambda *both: seen.put(both), told.put)
    lookout.start()
    found, spaces = seen.get(timeout=5)
    assert told.empty()
    lookout.watch(("m.gguf", "absent.gguf"))
    assert told.get(timeout=2) == {"m.gguf": "/m.gguf", "absent.gguf": None}  # at once, not at the next scan
    lookout.stop()
    assert [m.id for m in found] == ["m"]
    space = shutil.disk_usage(tmp_path)
    assert [(d.folder, d.total_mb) for d in spaces] == [(str(tmp_path), space.total // 2**20)]
    assert spaces[0].free_mb == pytest.approx(space.free // 2**20, rel=0.2)


def test_each_file_system_is_measured_once_and_one_that_cannot_be_asked_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> os.statvfs_result:
        raise OSError(116, "Stale file handle", str(path))

    folders = [tmp_path / "a" / "b", tmp_path, Path("/proc")]
    assert [d.folder for d in disks.measure(folders)] == [str(tmp_path / "a" / "b"), "/proc"]
    monkeypatch.setattr(os, "statvfs", fail)
    assert disks.measure(folders) == []


def test_a_folder_that_is_hidden_is_said_and_the_others_are_still_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, real = tmp_path / "hidden", Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        # Tests may run as root, whom no mode keeps out.
        if path == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "stat", stat)
    library = Library([hidden, tmp_path / "file"], tmp_path / "cache")
    library.scan()
    denied, no_folder = library.complaints
    assert denied.startswith(f"{hidden}: Permission denied")
    assert no_folder == f"{tmp_path / 'file'}: is no folder"
