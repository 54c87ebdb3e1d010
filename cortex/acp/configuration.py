"""Where the models are: config.toml, or plain environment variables, which win."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import ConfigError

DEFAULT_BASE_URL = "http://127.0.0.1:31313/v1"
DEFAULT_IDLE_TIMEOUT_S = 300


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible address."""

    name: str
    base_url: str
    api_key: str = ""
    model: str = ""
    context_window: int | None = None
    max_tokens: int | None = None
    idle_timeout_s: int = DEFAULT_IDLE_TIMEOUT_S
    """Without a byte for so long the endpoint is given up; a reply may take as long as it likes in all."""
    tools: bool = True
    """False for endpoints and models that know none: the agent then only talks."""


@dataclass(frozen=True)
class Configuration:
    """The endpoints by name, the default first."""

    endpoints: tuple[Endpoint, ...]

    def find(self, choice: str) -> tuple[Endpoint, str]:
        """Return the endpoint and the model that `choice` means: MODEL of the default, or ENDPOINT/MODEL."""
        name, slash, model = choice.partition("/")
        for endpoint in self.endpoints[1:]:
            if slash and endpoint.name == name:
                return endpoint, model
        return self.endpoints[0], choice or self.endpoints[0].model


def default_path() -> Path:
    """Return where the configuration lies by the XDG rules."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "helexa-acp" / "config.toml"


def read(path: Path, environment: Mapping[str, str]) -> Configuration:
    """Read the file, where there is one, and the environment. Raises ConfigError naming the file and the field."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key in document.keys() - {"default", "endpoints"}:
        raise ConfigError(f"{path}: {key}: unknown; known are default, endpoints")
    table = document.get("endpoints", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: endpoints: must be tables, [endpoints.NAME]")
    endpoints = [_endpoint(path, name, fields, environment) for name, fields in table.items()]
    default = document.get("default", endpoints[0].name if endpoints else None)
    if endpoints and default not in table:
        raise ConfigError(f"{path}: default: {default!r} is none of the endpoints ({', '.join(table)})")
    endpoints.sort(key=lambda e: e.name != default)
    first = endpoints[0] if endpoints else Endpoint("default", DEFAULT_BASE_URL)
    return Configuration((_with_environment(first, environment), *endpoints[1:]))


def _endpoint(path: Path, name: str, fields: Any, environment: Mapping[str, str]) -> Endpoint:
    where = f"{path}: endpoints.{name}"
    texts = ("base_url", "api_key", "api_key_env", "model")
    numbers = ("context_window", "max_tokens", "idle_timeout_s")
    kinds = {**dict.fromkeys(texts, "text"), **dict.fromkeys(numbers, "a positive number"), "tools": "true or false"}
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: must be a table")
    for key, value in fields.items():
        if key not in kinds:
            raise ConfigError(f"{where}.{key}: unknown; known are {', '.join(kinds)}")
        is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not (isinstance(value, str) if key in texts else is_number if key in numbers else isinstance(value, bool)):
            raise ConfigError(f"{where}.{key}: must be {kinds[key]}")
    if "base_url" not in fields:
        raise ConfigError(f"{where}.base_url: missing")
    key = fields.get("api_key", "")
    if variable := fields.get("api_key_env"):
        if variable not in environment:
            raise ConfigError(f"{where}.api_key_env: the environment has no {variable}")
        key = environment[variable]
    return Endpoint(
        name, _url(f"{where}.base_url", fields["base_url"]), key, fields.get("model", ""),
        fields.get("context_window"), fields.get("max_tokens"), fields.get("idle_timeout_s", DEFAULT_IDLE_TIMEOUT_S),
        fields.get("tools", True),
    )  # fmt: skip


def _with_environment(endpoint: Endpoint, environment: Mapping[str, str]) -> Endpoint:
    def number(name: str, default: Any) -> Any:
        text = environment.get(name)
        if not text:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise ConfigError(f"{name}: {text!r} is not a positive number")
        return int(text)

    tools = environment.get("HELEXA_ACP_TOOLS") or ("on" if endpoint.tools else "off")
    if tools not in ("on", "off"):
        raise ConfigError(f"HELEXA_ACP_TOOLS: {tools!r} must be on or off")
    url = environment.get("HELEXA_ACP_BASE_URL") or endpoint.base_url
    return replace(
        endpoint,
        base_url=_url("HELEXA_ACP_BASE_URL", url),
        api_key=environment.get("HELEXA_ACP_API_KEY", endpoint.api_key),
        model=environment.get("HELEXA_ACP_MODEL") or endpoint.model,
        context_window=number("HELEXA_ACP_CONTEXT_WINDOW", endpoint.context_window),
        max_tokens=number("HELEXA_ACP_MAX_TOKENS", endpoint.max_tokens),
        idle_timeout_s=number("HELEXA_ACP_IDLE_TIMEOUT_S", endpoint.idle_timeout_s),
        tools=tools == "on",
    )


def _url(where: str, url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{where}: {url!r} must begin with http:// or https://")
    return url.rstrip("/")
