"""`cortex report`: a bundle for a bug report, without keys, prompts or answers."""

import argparse
import functools
import importlib.metadata
import io
import os
import platform
import re
import ssl
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson

from common import revision
from common.errors import ConfigError
from cortex.cli import orders
from cortex.cli.fleet import DONE, TIMEOUT_S, connect, trusted
from cortex.settings import load_settings

HIDDEN = "(hidden)"
_SECRET_NAMES = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)
_SECRET_TEXTS = re.compile(r"sk-[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+|hf_[A-Za-z0-9]{8,}")
_PACKAGES = ("helexa", "falcon", "gunicorn", "uvloop", "pyzmq", "msgspec", "orjson", "prometheus-client",
             "llama-cpp-python", "httpx")  # fmt: skip


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's grammar."""
    text = (
        "Write an archive with versions, configuration, states of the fleet, recent requests (without prompts and "
        "answers) and metrics. Keys are left out; look into it before you send it."
    )
    report = commands.add_parser("report", help="a bundle for a bug report, without secrets", description=text)
    report.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: cortex-report-DATE.tar.gz here")
    orders.add_gateway(report)


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle; return the exit status. Raises ConfigError."""
    url, headers = connect(arguments.url, arguments.config)
    parts: dict[str, bytes] = {"versions.json": _dump(_versions())}
    if arguments.config is not None:
        settings = load_settings(arguments.config)
        parts["configuration.json"] = _dump(redact(msgspec.to_builtins(settings)))
        address = settings.metrics_listen
        if address is not None:
            host = "127.0.0.1" if address.host in ("0.0.0.0", "[::]") else address.host
            parts["metrics.txt"] = _ask(lambda: httpx.get(f"http://{host}:{address.port}/metrics", timeout=TIMEOUT_S))
    trust = trusted(arguments.config)
    for name, path in (("health", "/health"), ("version", "/version"), ("models", "/v1/models"),
                       ("fleet", "/fleet/status")):  # fmt: skip
        ask = functools.partial(httpx.get, url + path, headers=headers, timeout=TIMEOUT_S, verify=trust)
        parts[f"{name}.json"] = _ask(ask)
    parts["live.txt"] = _ask_live(url, headers, trust)
    file: Path = arguments.output or Path(f"cortex-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    _write(
        file, {name: _SECRET_TEXTS.sub(HIDDEN, data.decode(errors="replace")).encode() for name, data in parts.items()}
    )
    if arguments.json:
        print(orjson.dumps({"file": str(file), "parts": sorted(parts)}).decode())
    else:
        print(f"{file} is written: {', '.join(sorted(parts))}; look into it before you send it")
    return DONE


def redact(value: Any, name: str = "") -> Any:
    """Return plain data without what may be a secret, by the names of its keys."""
    if _SECRET_NAMES.search(name) and value not in (None, [], "", True, False):
        return HIDDEN
    if isinstance(value, dict):
        return {k: redact(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(v, name) for v in value]
    return value


def _versions() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "missing"
    return {
        "cortex": revision.describe("cortex"),
        "python": sys.version,
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _ask(ask: Callable[[], httpx.Response]) -> bytes:
    """Return an answer's body; a failure is part of the report, not its end."""
    try:
        answer = ask()
    except httpx.HTTPError as error:
        return f"no answer: {error}\n".encode()
    body = answer.content if answer.status_code == httpx.codes.OK else b""
    return body or f"status {answer.status_code}\n".encode()


def _ask_live(url: str, headers: dict[str, str], trust: ssl.SSLContext | bool) -> bytes:
    """Return the first events of the page's stream: recent requests and lifecycle events."""
    data = b""
    try:
        with httpx.stream("GET", f"{url}/fleet/live", headers=headers, timeout=TIMEOUT_S, verify=trust) as answer:
            if answer.status_code != httpx.codes.OK:
                return f"status {answer.status_code}\n".encode()
            for chunk in answer.iter_bytes():
                data += chunk
                if b"event: pulse" in data:
                    break
    except httpx.HTTPError as error:
        return data + f"no answer: {error}\n".encode()
    return data


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str)


def _write(file: Path, parts: dict[str, bytes]) -> None:
    try:
        with (
            open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out,
            tarfile.open(fileobj=out, mode="w:gz") as archive,
        ):
            for name, data in sorted(parts.items()):
                entry = tarfile.TarInfo(f"cortex-report/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
