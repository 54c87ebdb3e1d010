"""Logging: one line an event, as text or JSON, with its fields and, where there is one, the request id."""

import logging
import os
import sys
import time
from typing import Any, Literal, TextIO

import orjson

LogFormat = Literal["auto", "text", "json"]
"""auto: JSON where stderr is systemd's journal, else text."""


def choose(format: LogFormat) -> Literal["text", "json"]:
    """Return the format to write in; to be asked by the process that systemd has started, not by its children."""
    if format != "auto":
        return format
    return "json" if _is_journal(os.environ.get("JOURNAL_STREAM", "")) else "text"


def _is_journal(told: str) -> bool:
    """Say whether stderr is what systemd told: its device and inode. The variable alone outlives a redirection."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return told == f"{status.st_dev}:{status.st_ino}"


def setup(process: str, *, format: LogFormat = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream`, stderr by default, each line naming `process`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if choose(format) == "json" else _TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def fields(**values: object) -> dict[str, Any]:
    """Return `extra` for a log call: key=value pairs behind the text, keys in the JSON. None values are left out."""
    return {"fields": {k: v for k, v in values.items() if v is not None}}


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {self._process}: {record.getMessage()}"
        for key, value in getattr(record, "fields", {}).items():
            text = str(value)
            line += f" {key}={text!r}" if " " in text else f" {key}={text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()
