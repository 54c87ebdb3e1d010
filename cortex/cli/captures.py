"""`cortex capture` and `cortex replay`: look at requests that the gateway has kept, and send one again."""

import argparse
import contextlib
import difflib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson

from common import tables
from common.errors import ConfigError
from cortex.capture.store import Captured, Store
from cortex.cli import orders
from cortex.cli.fleet import DONE, FAILED, NO_ANSWER, TIMEOUT_S, connect, explain_silence, trusted
from cortex.settings import capture_store, load_settings

SILENCE_S = 600.0
_TEXTS = frozenset({"content", "text", "reasoning_content", "thinking", "arguments", "partial_json", "delta"})
"""Keys of a reply under which a model's words stand, in any dialect."""


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", config_help: str) -> None:
    """Add the commands to the command line's grammar."""
    text = "Look at the requests that this host's gateway has kept (capture.folder), prompts and answers included."
    capture = commands.add_parser("capture", help="requests that were kept, with prompts and answers", description=text)
    capture.add_argument("action", nargs="?", choices=("ls", "show", "clear"), default="ls",
                         help="list them (default); show one; remove all")  # fmt: skip
    capture.add_argument("id", nargs="?", metavar="ID", help="show: the request's id")
    capture.add_argument("--config", type=Path, metavar="FILE", help=config_help)
    capture.add_argument("--json", action="store_true", help="print JSON")
    text = "Send a request that was kept once more, as it was, and compare what the model says with what it said then."
    replay = commands.add_parser("replay", help="send a kept request again, and compare", description=text)
    replay.add_argument("id", metavar="ID", help="as `cortex capture` shows it")
    orders.add_gateway(replay)


def _store(config: Path) -> Store:
    store = capture_store(load_settings(config), config)
    if store is None:
        raise ConfigError(f"{config}: nothing is kept; set capture.folder and restart the gateway")
    return store


def run_capture(arguments: argparse.Namespace, config: Path) -> int:
    """Do what was asked; return the exit status. Raises ConfigError."""
    store = _store(config)
    if arguments.action == "clear":
        print(f"{store.clear()} requests removed")
        return DONE
    if arguments.action == "show":
        captured = _find(store, arguments.id)
        print(_dump(msgspec.to_builtins(captured)) if arguments.json else _describe(captured))
        return DONE
    found = store.all()
    if arguments.json:
        print(_dump([msgspec.to_builtins(c) for c in found]))
    elif not found:
        print("no requests are kept")
    else:
        rows = [[c.id, _clock(c.at), c.path, c.model or "-", c.node or "-", c.outcome, f"{c.seconds:.1f} s",
                 str(sum(j.tokens or 0 for j in c.jobs))] for c in found]  # fmt: skip
        tables.show(["REQUEST", "TIME", "PATH", "MODEL", "NODE", "OUTCOME", "TOOK", "TOKENS"], rows,
                    right=("TOOK", "TOKENS"))  # fmt: skip
    return DONE


def _find(store: Store, id: str | None) -> Captured:
    if not id:
        raise ConfigError("which request? `cortex capture` lists them")
    captured = store.find(id)
    if captured is None:
        raise ConfigError(f"no request '{id}' is kept in {store.folder}; `cortex capture` lists them")
    return captured


def _describe(captured: Captured) -> str:
    parts = [f"{captured.id}  {_clock(captured.at)}  {captured.path}  {captured.model}  {captured.outcome}",
             "", "== request ==", captured.request]  # fmt: skip
    for number, job in enumerate(captured.jobs, 1):
        title = f"answer {number}" if len(captured.jobs) > 1 else "answer"
        if job.prompt is not None:
            parts += ["", f"== prompt, {job.prompt_tokens} tokens, {job.cached_tokens} cached ==", job.prompt]
        parts += ["", f"== {title} as the model wrote it, {job.tokens} tokens, {job.reason} ==", job.raw]
    return "\n".join([*parts, "", "== reply ==", captured.reply])


def run_replay(arguments: argparse.Namespace, config: Path) -> int:
    """Send a request again; 0 if the model said the same. Raises ConfigError."""
    captured = _find(_store(config), arguments.id)
    if captured.is_cut:
        raise ConfigError(f"request '{captured.id}' was too long to be kept whole, so it cannot be sent again")
    url, headers = connect(arguments.url, config)
    limits = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
    query = f"?{captured.query}" if captured.query else ""
    try:
        answer = httpx.post(
            f"{url}{captured.path}{query}",
            content=captured.request.encode(),
            headers={**headers, "content-type": "application/json", "anthropic-version": "2023-06-01"},
            timeout=limits,
            verify=trusted(config),
        )
    except httpx.TransportError as error:
        print(explain_silence(url, error), file=sys.stderr)
        return NO_ANSWER
    then, now = said(captured.reply), said(answer.text)
    if arguments.json:
        print(
            _dump({"status": answer.status_code, "reply": answer.text, "then": then, "now": now, "same": then == now})
        )
    else:
        print(now or answer.text)
        _compare(then, now)
    return DONE if then == now and answer.status_code == captured.status else FAILED


def _compare(then: str, now: str) -> None:
    if then == now:
        print("the model said the same then", file=sys.stderr)
        return
    print("the model said something else then:", file=sys.stderr)
    for line in difflib.unified_diff(then.splitlines(), now.splitlines(), "then", "now", lineterm="", n=1):
        print(line, file=sys.stderr)


def said(reply: str) -> str:
    """Return the words of a reply in any dialect, streamed or whole, without ids, times and counts."""
    parts: list[str] = []
    lines = [line[5:].strip() for line in reply.splitlines() if line.startswith("data:")]
    for text in lines or [reply]:
        with contextlib.suppress(orjson.JSONDecodeError):
            parts += _words(orjson.loads(text))
    return "".join(parts)


def _words(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        # The last events of some dialects repeat the whole answer.
        if str(value.get("type", "")).endswith((".done", ".completed")):
            return
        for key, inner in value.items():
            yield from _words(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner, name)
    elif isinstance(value, str) and name in _TEXTS:
        yield value


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _dump(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
