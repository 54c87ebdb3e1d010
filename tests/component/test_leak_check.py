"""The leak check sees what it is there for."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import leaks


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 0.0)


def test_an_open_file_is_seen(tmp_path: Path) -> None:
    before = leaks.take()
    with (tmp_path / "forgotten").open("w"):
        assert any("forgotten" in left for left in leaks.wait_for_none(before))
    assert leaks.wait_for_none(before) == []


def test_a_thread_is_seen() -> None:
    before, release = leaks.take(), threading.Event()
    thread = threading.Thread(target=release.wait, name="forgotten")
    thread.start()
    assert leaks.wait_for_none(before) == ["thread forgotten"]
    release.set()
    thread.join()
    assert leaks.wait_for_none(before) == []


def test_a_child_is_seen_also_where_it_is_a_zombie() -> None:
    before = leaks.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert f"child process {child.pid}" in leaks.wait_for_none(before)
    child.kill()
    assert f"child process {child.pid}" in leaks.wait_for_none(before)
    child.communicate()
    assert leaks.wait_for_none(before) == []


def test_what_goes_in_time_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_S", 10.0)
    before, release = leaks.take(), threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    threading.Timer(0.1, release.set).start()
    assert leaks.wait_for_none(before) == []
    thread.join()
