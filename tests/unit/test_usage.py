"""Usage: added up by day, key and model, and kept when it cannot be written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cortex.access.usage import Row, UsageBook, Used, read_usage

NOW = 1_800_000_000.0
TODAY = "2027-01-15"


def test_several_processes_add_up_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "usage.sqlite"
    for _ in range(3):
        book = UsageBook(file)
        book.add("ada", "m", Used(1, 10, 2, 5), NOW)
        book.add("ada", "m", Used(1, 10, 0, 5), NOW)
        book.add("ada", "m", Used(1, 1, 0, 1), NOW - 86400)
        book.add("bob", "m", Used(1, 1, 0, 1), NOW)
        book.write()
        assert not book
    assert read_usage(file, NOW) == [
        Row(TODAY, "ada", "m", Used(6, 60, 6, 30)),
        Row(TODAY, "bob", "m", Used(3, 3, 0, 3)),
    ]
    assert len(read_usage(file, NOW - 86400)) == 3


def test_what_cannot_be_written_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "state" / "usage.sqlite"
    book = UsageBook(file)
    for _ in range(3):
        book.add("ada", "m", Used(1, 10, 0, 5), NOW)
        book.write()
    assert book
    assert len(caplog.records) == 1
    file.parent.mkdir()
    book.add("ada", "m", Used(1, 10, 0, 5), NOW)
    book.write()
    assert [r.used for r in read_usage(file, NOW)] == [Used(4, 40, 0, 20)]


def test_columns_that_a_newer_gateway_has_added_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "usage.sqlite"
    book = UsageBook(file)
    book.add("ada", "m", Used(1, 10, 0, 5), NOW)
    book.write()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("alter table usage add column images integer not null default 0")
        database.execute("update usage set images = 7")
    book.add("ada", "m", Used(1, 10, 0, 5), NOW)
    book.write()
    assert [r.used for r in read_usage(file, NOW)] == [Used(2, 20, 0, 10)]
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select images from usage").fetchall() == [(7,)]


def test_without_a_folder_nothing_is_kept() -> None:
    book = UsageBook(None)
    book.add("ada", "m", Used(1), NOW)
    assert not book


def test_before_the_first_is_written_there_is_none(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "usage.sqlite", NOW) == []
    sqlite3.connect(tmp_path / "usage.sqlite").close()
    assert read_usage(tmp_path / "usage.sqlite", NOW) == []
    with pytest.raises(sqlite3.Error):
        read_usage(tmp_path / "elsewhere" / "usage.sqlite", NOW)
