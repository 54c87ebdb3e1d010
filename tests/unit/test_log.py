"""A log line holds its process, its level, its fields, and the request id; as text or as JSON."""

import logging
import os
from collections.abc import Iterator

import orjson
import pytest

from common import log


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("x").exception("it failed")


def test_a_text_line_names_level_process_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("worker CPU-0")
    logging.getLogger("x").warning(
        "slow by %d %%", 5, extra=log.fields(request_id="req_1", model="two words", job=None)
    )
    assert capsys.readouterr().err[12:] == " warning worker CPU-0: slow by 5 % request_id=req_1 model='two words'\n"


def test_a_json_line_has_the_fields_as_keys(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("cortex", format="json")
    logging.getLogger("x").error('a "quoted" text', extra=log.fields(request_id="req_1", tokens=3, path=object))
    line = orjson.loads(capsys.readouterr().err)
    assert line.pop("time")
    assert line == {
        "level": "error", "process": "cortex", "message": 'a "quoted" text', "request_id": "req_1", "tokens": 3,
        "path": str(object),
    }  # fmt: skip


def test_what_is_below_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("cortex", level="warning")
    logging.getLogger("x").info("not said")
    logging.getLogger("x").warning("said")
    assert capsys.readouterr().err[12:] == " warning cortex: said\n"


def test_an_exception_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("cortex")
    fail()
    said = capsys.readouterr().err
    assert said.endswith("ValueError: the cause\n")
    assert "Traceback" in said


def test_an_exception_stays_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("cortex", format="json")
    fail()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ValueError: the cause" in orjson.loads(said)["exception"]


def test_a_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("one")
    log.setup("two")
    logging.getLogger("x").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_lines_are_json_where_stderr_is_the_journal_and_text_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(2)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert log.choose("auto") == "text"
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert log.choose("auto") == "json"
    assert log.choose("text") == "text"
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")  # it was redirected since
    assert log.choose("auto") == "text"
