"""`cortex bench`: how a running gateway and its fleet do under more and more clients."""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson

from common import tables
from common.errors import ConfigError
from cortex.cli import orders
from cortex.cli.fleet import DONE, FAILED, NO_ANSWER, connect, explain_silence, trusted
from cortex.cli.streaming import ChatFailed, Spoken, converse

_TEXT = "the quick brown fox jumps over a lazy dog and runs into the forest where nobody lives"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's grammar."""
    text = "Measure a running gateway: streams of chats by more and more clients, each with a prompt of its own."
    bench = commands.add_parser("bench", help="measure a running gateway with more and more clients", description=text)
    bench.add_argument("model", metavar="MODEL", help="id or alias")
    bench.add_argument("--clients", type=_levels, default=[1, 2, 4, 8], metavar="N,N,…", help="default: 1,2,4,8")
    bench.add_argument("--requests", type=int, default=4, metavar="N", help="of each client (default: 4)")
    bench.add_argument("--prompt-words", type=int, default=100, metavar="N", help="default: 100")
    bench.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of an answer (default: 64)")
    orders.add_gateway(bench)


def _levels(text: str) -> list[int]:
    levels = [int(part) for part in text.split(",")]
    if not all(0 < level <= 256 for level in levels):
        raise argparse.ArgumentTypeError("between 1 and 256 clients")
    return levels


def run(arguments: argparse.Namespace) -> int:
    """Measure each level and print a table; return the exit status. Raises ConfigError."""
    url, headers = connect(arguments.url, arguments.config)
    rows = []
    try:
        with httpx.Client(headers=headers, verify=trusted(arguments.config)) as client:
            converse(client, url, _body(arguments, -1))  # loads the model, where nobody has it
        for clients in arguments.clients:
            rows.append(_measure(url, headers, arguments, clients))
            if sys.stderr.isatty():
                print(f"{clients} clients: {rows[-1]['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    except httpx.TransportError as error:
        print(explain_silence(url, error), file=sys.stderr)
        return NO_ANSWER
    except ChatFailed as error:
        print(f"cortex: {error}", file=sys.stderr)
        return FAILED
    if arguments.json:
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(rows)
    return FAILED if any(row["failed"] for row in rows) else DONE


def _body(arguments: argparse.Namespace, serial: int) -> dict[str, Any]:
    # The number comes first, so that no prompt begins like another: what is measured is no prefix cache.
    text = _TEXT.split()
    words = [str(serial), *(text[(serial + i) % len(text)] for i in range(max(1, arguments.prompt_words - 1)))]
    return {
        "model": arguments.model,
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": arguments.max_tokens,
        "temperature": 0,
    }


def _measure(url: str, headers: dict[str, str], arguments: argparse.Namespace, clients: int) -> dict[str, Any]:
    if arguments.requests < 1:
        raise ConfigError("--requests: must be at least 1")
    together, failures = threading.Barrier(clients), []

    def work(client_number: int) -> list[Spoken]:
        spoken = []
        with httpx.Client(headers=headers, verify=trusted(arguments.config)) as client:
            together.wait()
            for turn in range(arguments.requests):
                serial = clients * 1_000_000 + client_number * 1000 + turn
                try:
                    spoken.append(converse(client, url, _body(arguments, serial)))
                except ChatFailed as error:
                    failures.append(str(error))
        return spoken

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = [spoken for part in pool.map(work, range(clients)) for spoken in part]
    elapsed_s = time.perf_counter() - began
    firsts = [s.ttft_s for s in answers if s.ttft_s is not None]
    gaps = [gap for s in answers for gap in s.gaps_s]
    tokens = sum(s.tokens for s in answers)
    return {
        "clients": clients,
        "requests": len(answers),
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "tokens": tokens,
        "tokens_per_s": tokens / elapsed_s,
        "ttft_ms": {name: _ms(firsts, share) for name, share in _SHARES.items()},
        "inter_token_ms": {name: _ms(gaps, share) for name, share in _SHARES.items()},
    }


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _ms(seconds: Sequence[float], share: float) -> float | None:
    """Return a percentile (nearest rank) in milliseconds."""
    if not seconds:
        return None
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1000


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ["CLIENTS", "REQUESTS", "FAILED", "TOKENS/S", "TTFT P50", "P95", "P99", "INTER-TOKEN P50", "P95 ", "P99 "]
    cells = []
    for row in rows:
        times = [row[kind][share] for kind in ("ttft_ms", "inter_token_ms") for share in _SHARES]
        cells.append([str(row["clients"]), str(row["requests"]), str(row["failed"]), f"{row['tokens_per_s']:.1f}",
                      *("-" if t is None else f"{t:.1f} ms" for t in times)])  # fmt: skip
    tables.show(columns, cells, right=columns)
    for row in rows:
        if row["first_failure"]:
            print(f"  {row['clients']} clients: {row['first_failure']}")
