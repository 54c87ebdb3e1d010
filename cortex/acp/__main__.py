"""`helexa-acp`: an Agent Client Protocol agent on stdio."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TextIO, cast

from acp import Agent
from acp.core import AgentSideConnection

from common import log
from common.errors import ConfigError
from common.revision import ShowVersion
from cortex.acp import configuration, store, wire
from cortex.acp.agent import HelexaAgent
from cortex.acp.upstream import Upstream

_EPILOG = """\
environment (it wins over the file):
  HELEXA_ACP_BASE_URL, _MODEL, _API_KEY, _CONTEXT_WINDOW, _MAX_TOKENS   the endpoint
  HELEXA_ACP_IDLE_TIMEOUT_S   give the endpoint up after so long without a byte
  HELEXA_ACP_TOOLS        off for an endpoint without tool calls
  HELEXA_ACP_LOG_FILE     where to log; default: stderr
  HELEXA_ACP_LOG_FORMAT   text or json

Started without --prune it speaks JSON-RPC with an editor on stdin and stdout.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="helexa-acp",
        description="An editor's coding agent (Agent Client Protocol) for any OpenAI-compatible endpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.config/helexa-acp/config.toml")
    parser.add_argument("--prune", type=_days, metavar="DAYS", help="remove sessions untouched for so long, and exit")
    return parser


def main() -> int:
    """Run the program; return its exit status."""
    arguments = build_parser().parse_args()
    sessions = store.Store(store.default_folder())
    if arguments.prune is not None:
        removed = sessions.prune(arguments.prune * 86400.0)
        print(f"{len(removed)} removed from {sessions.folder}")
        return 0
    sink = wire.claim_stdout()
    try:
        settings = configuration.read(arguments.config or configuration.default_path(), os.environ)
        _set_up_log()
        asyncio.run(_serve(settings, sessions, sink))
    except ConfigError as error:
        print(f"helexa-acp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _serve(settings: configuration.Configuration, sessions: store.Store, sink: int) -> None:
    agent = HelexaAgent(settings, sessions, Upstream())
    try:
        lines = await wire.Lines.open(os.dup(0), sink)
    except ValueError as error:
        raise ConfigError(f"stdin and stdout must be pipes or a terminal: {error}") from error
    connection = AgentSideConnection(cast(Agent, agent), lines, listening=False, use_unstable_protocol=True)
    try:
        await connection.listen()
    finally:
        await agent.shut_down()
        await connection.close()


def _set_up_log() -> None:
    shape = os.environ.get("HELEXA_ACP_LOG_FORMAT", "text")
    if shape not in ("text", "json"):
        raise ConfigError(f"HELEXA_ACP_LOG_FORMAT: {shape!r} must be text or json")
    stream: TextIO | None = None
    problem = None
    if path := os.environ.get("HELEXA_ACP_LOG_FILE"):
        try:
            stream = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 # for the whole run
        except OSError as error:
            problem = error
    log.setup("helexa-acp", format=cast(log.LogFormat, shape), stream=stream)
    # It logs every request at the level that belongs to the rounds of a prompt.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if problem is not None:
        logging.getLogger(__name__).warning(
            "the log file cannot be opened; logging here", extra=log.fields(error=problem)
        )


def _days(text: str) -> float:
    days = float(text)
    if not days > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be more than 0")
    return days


if __name__ == "__main__":
    sys.exit(main())
