"""`cortex setup CLIENT`: the settings with which a coding agent uses this gateway, made from what the gateway says.

| client | file | form | key |
|---|---|---|---|
| claude (Claude Code) | ~/.claude/settings.json | merged into | in the file |
| codex | ~/.codex/helexa.config.toml | a profile of its own: `codex --profile helexa` | $HELEXA_API_KEY |
| zed | ~/.config/zed/settings.json | merged into | $HELEXA_API_KEY |
| opencode | ~/.config/opencode/opencode.json | merged into | $HELEXA_API_KEY |
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from common.errors import ConfigError
from cortex.cli import jsonc, orders
from cortex.cli.fleet import DONE, FAILED, NO_ANSWER, TIMEOUT_S, connect, explain, explain_silence, trusted

PROVIDER = "helexa"
KEY_VARIABLE = "HELEXA_API_KEY"
NO_KEY = "none"
"""For clients that insist on some key, where the gateway wants none."""
OUTPUT_SHARE = 4
"""A client that must name a limit for answers may use this part of the context."""


@dataclass(frozen=True)
class Offer:
    """What the gateway has: its address, and its models."""

    url: str
    key: str
    model: str
    """That is used unless another is chosen."""
    contexts: dict[str, int | None]
    """By model: tokens of prompt and answer together."""
    tools: frozenset[str]
    """Models that can call tools."""
    images: frozenset[str]


@dataclass(frozen=True)
class Client:
    """One client's settings."""

    title: str
    file: Callable[[], Path]
    make: Callable[[Offer], dict[str, Any] | str]
    """JSON to merge into the file, or the whole text of a file of our own."""
    hint: str


def _claude(offer: Offer) -> dict[str, Any]:
    environment = {
        "ANTHROPIC_BASE_URL": offer.url,
        "ANTHROPIC_AUTH_TOKEN": offer.key,
        "ANTHROPIC_MODEL": offer.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": offer.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": offer.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": offer.model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    context = offer.contexts[offer.model]
    if context is not None:
        environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(max(1024, context // OUTPUT_SHARE))
    return {"env": environment}


def _codex(offer: Offer) -> str:
    lines = [f"model = {_toml(offer.model)}", f'model_provider = "{PROVIDER}"']
    context = offer.contexts[offer.model]
    if context is not None:
        lines.append(f"model_context_window = {context}")
    lines += ["", f"[model_providers.{PROVIDER}]", f'name = "{PROVIDER}"', f"base_url = {_toml(offer.url + '/v1')}",
              'wire_api = "responses"']  # fmt: skip
    if offer.key != NO_KEY:
        lines.append(f'env_key = "{KEY_VARIABLE}"')
    return "\n".join(lines) + "\n"


def _toml(text: str) -> str:
    # JSON's strings are TOML's basic strings.
    return orjson.dumps(text).decode()


def _zed(offer: Offer) -> dict[str, Any]:
    models = [
        {
            "name": model,
            "display_name": model,
            "max_tokens": context or 8192,
            "capabilities": {
                "tools": model in offer.tools,
                "images": model in offer.images,
                "parallel_tool_calls": False,
                "prompt_cache_key": False,
            },
        }
        for model, context in offer.contexts.items()
    ]
    provider = {"api_url": f"{offer.url}/v1", "available_models": models}
    return {
        "language_models": {"openai_compatible": {PROVIDER: provider}},
        "agent": {"default_model": {"provider": PROVIDER, "model": offer.model}},
    }


def _opencode(offer: Offer) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for model, context in offer.contexts.items():
        models[model] = {"name": model, "tool_call": model in offer.tools}
        if context is not None:
            models[model]["limit"] = {"context": context, "output": max(1024, context // OUTPUT_SHARE)}
    key = NO_KEY if offer.key == NO_KEY else f"{{env:{KEY_VARIABLE}}}"
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": PROVIDER,
        "options": {"baseURL": f"{offer.url}/v1", "apiKey": key},
        "models": models,
    }
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {PROVIDER: provider},
        "model": f"{PROVIDER}/{offer.model}",
    }


def _home(*parts: str, variable: str = "") -> Path:
    base = os.environ.get(variable) if variable else None
    return Path(base).joinpath(*parts[1:]) if base else Path.home().joinpath(*parts)


CLIENTS = {
    "claude": Client("Claude Code", lambda: _home(".claude", "settings.json", variable="CLAUDE_CONFIG_DIR"), _claude,
                     "start: claude"),
    "codex": Client("Codex", lambda: _home(".codex", f"{PROVIDER}.config.toml", variable="CODEX_HOME"), _codex,
                    f"start: codex --profile {PROVIDER}"),
    "zed": Client("Zed", lambda: _home(".config", "zed", "settings.json", variable="XDG_CONFIG_HOME"), _zed,
                  f"Zed wants some key: {KEY_VARIABLE} in its environment, or in its provider settings"),
    "opencode": Client("opencode", lambda: _home(".config", "opencode", "opencode.json", variable="XDG_CONFIG_HOME"),
                       _opencode, "start: opencode"),
}  # fmt: skip


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line's grammar."""
    text = "Print the settings with which a coding agent uses this gateway, or write them into its file."
    setup = commands.add_parser("setup", help="settings of Claude Code, Codex, Zed, opencode", description=text)
    setup.add_argument("client", choices=CLIENTS, help="whose")
    setup.add_argument("--model", metavar="MODEL", help="id or alias; default: the one that is loaded, else the first")
    setup.add_argument("--key", metavar="KEY", help="API key for the client; default: $CORTEX_API_KEY, else none")
    setup.add_argument("--write", action="store_true", help="into the client's file, after a backup")
    orders.add_gateway(setup)


def run(arguments: argparse.Namespace) -> int:
    """Print or write the settings; return the exit status. Raises ConfigError."""
    url, headers = connect(arguments.url, arguments.config)
    key = arguments.key or os.environ.get("CORTEX_API_KEY") or NO_KEY
    if key != NO_KEY:
        headers = {"Authorization": f"Bearer {key}"}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=TIMEOUT_S, verify=trusted(arguments.config))
    except httpx.TransportError as error:
        print(explain_silence(url, error), file=sys.stderr)
        return NO_ANSWER
    if answer.status_code != httpx.codes.OK:
        print(f"cortex: {explain(answer, '/v1/models')}", file=sys.stderr)
        return FAILED
    client = CLIENTS[arguments.client]
    offer = read_offer(url, key, answer.json()["data"], arguments.model)
    made = client.make(offer)
    file = client.file()
    if not arguments.write:
        print(f"{file}:", file=sys.stderr)
        print(made if isinstance(made, str) else _json(made), end="")
    else:
        backup = write(file, made)
        print(f"{file} is written" + (f"; what it was is in {backup.name}" if backup else ""))
    if key != NO_KEY and arguments.client != "claude":
        print(f"put the key into its environment: export {KEY_VARIABLE}=…", file=sys.stderr)
    print(client.hint, file=sys.stderr)
    return DONE


def read_offer(url: str, key: str, entries: list[dict[str, Any]], wanted: str | None) -> Offer:
    """Return what can be set up. Raises ConfigError where there is no such model."""
    chats = [e for e in entries if not e.get("capabilities") or "chat" in e["capabilities"]]
    names = {e["id"]: e for e in chats}
    if not names:
        raise ConfigError("the gateway has no model that can chat; see cortex models")
    if wanted is not None and wanted not in names:
        raise ConfigError(f"no model '{wanted}' that can chat; there are: {', '.join(names)}")
    loaded = [n for n, e in names.items() if e.get("status", {}).get("value") == "loaded"]
    return Offer(
        url=url,
        key=key,
        model=wanted or next(iter([*loaded, *names])),
        contexts={n: e.get("meta", {}).get("n_ctx") for n, e in names.items()},
        tools=frozenset(n for n, e in names.items() if not e.get("capabilities") or "tools" in e["capabilities"]),
        images=frozenset(n for n, e in names.items() if "vision" in e.get("capabilities", ())),
    )


def write(file: Path, made: dict[str, Any] | str) -> Path | None:
    """Write or merge settings; return the backup of what was there. Raises ConfigError for a file that is no JSON.

    Comments stay where they are.
    """
    try:
        before = file.read_bytes() if file.exists() else None
        text = made if isinstance(made, str) else jsonc.merge((before or b"").decode(), made, PROVIDER)
        backup = None
        if before is not None:
            backup = file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak")
            _replace(backup, before)
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, text.encode())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: is no JSON: {error}; run without --write, and copy what is printed") from None
    return backup


def _replace(file: Path, data: bytes) -> None:
    new = file.with_name(file.name + ".new")
    # It may hold a key.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
    new.replace(file)


def _json(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
