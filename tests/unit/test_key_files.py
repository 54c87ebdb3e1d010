"""Who a file of keys belongs to that root has made."""

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.key_files import hand_over, write_lines


@pytest.mark.parametrize(
    ("euid", "around", "given"),
    [
        (1000, (0, 300), None),
        (0, (0, 0), None),
        (0, (300, 400), (300, 400)),  # a folder of the service's own
        (0, (0, 300), (77, 300)),  # /etc/neuron: root's, for the group neuron
        (0, (0, 999), (0, 999)),  # a group without a user
    ],
)
def test_it_belongs_to_the_service_that_the_folder_is_for(
    euid: int, around: tuple[int, int], given: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chowned = []
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(os, "chown", lambda _, uid, gid: chowned.append((uid, gid)))
    monkeypatch.setattr(Path, "stat", lambda _: SimpleNamespace(st_uid=around[0], st_gid=around[1]))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=f"group-{gid}"))

    def user(name: str) -> object:
        if name != "group-300":
            raise KeyError(name)
        return SimpleNamespace(pw_uid=77)

    monkeypatch.setattr(pwd, "getpwnam", user)
    hand_over(Path("/somewhere/key"))
    assert chowned == ([] if given is None else [given])


def test_a_file_that_is_written_again_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "list"
    write_lines(path, ["a"])
    path.chmod(0o640)
    write_lines(path, ["a", "b"])
    assert path.read_text() == "a\nb\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]
