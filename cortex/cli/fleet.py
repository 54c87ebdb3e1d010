"""`cortex status` and `cortex models`: the fleet as the gateway sees it, over HTTP."""

import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson

from common import tables
from common.errors import ConfigError
from common.messages import NodeState
from cortex.settings import admin_keys, load_settings

DONE, FAILED, NO_ANSWER = 0, 1, 3
TIMEOUT_S = 10.0
CLEAR = "\x1b[H\x1b[2J"
DEFAULT_URL = "http://127.0.0.1:31313"


class _Node(msgspec.Struct):
    name: str
    endpoint: str
    link: str
    error: str | None = None
    state: NodeState | None = None


class _FleetStatus(msgspec.Struct):
    nodes: list[_Node]
    models: list[dict[str, Any]]


class _ModelList(msgspec.Struct):
    data: list[dict[str, Any]]


def show(command: str, url: str | None, config: Path | None, *, as_json: bool, watch_s: float | None = None) -> int:
    """Print what the gateway says, with `watch_s` again and again; return the exit status. Raises ConfigError."""
    url, headers = connect(url, config)
    if watch_s is None:
        return _show(command, url, headers, trusted(config), as_json=as_json)
    try:
        while True:
            if sys.stdout.isatty():
                print(CLEAR, end="")
            _show(command, url, headers, trusted(config), as_json=as_json)  # a gateway that is away may come back
            sys.stdout.flush()
            time.sleep(watch_s)
    except KeyboardInterrupt:
        return DONE


def _show(command: str, url: str, headers: dict[str, str], trust: ssl.SSLContext | bool, *, as_json: bool) -> int:
    path = "/v1/models" if command == "models" else "/fleet/status"
    try:
        answer = httpx.get(url + path, headers=headers, timeout=TIMEOUT_S, verify=trust)
    except httpx.TransportError as error:
        print(explain_silence(url, error), file=sys.stderr)
        return NO_ANSWER
    if answer.status_code != httpx.codes.OK:
        print(f"cortex: {explain(answer, path)}", file=sys.stderr)
        return FAILED
    kind: type[_ModelList | _FleetStatus] = _ModelList if command == "models" else _FleetStatus
    try:
        reply = msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"cortex: what answers at {url} is no gateway of this version: {error}", file=sys.stderr)
        return FAILED
    if as_json:
        print(orjson.dumps(orjson.loads(answer.content), option=orjson.OPT_INDENT_2).decode())
    elif isinstance(reply, _ModelList):
        tables.show_catalogue(reply.data)
    elif command == "nodes":
        _list_nodes(reply)
    else:
        _show_nodes(reply)
    return DONE


def connect(url: str | None, config: Path | None) -> tuple[str, dict[str, str]]:
    """Return the gateway's address and the headers that open its admin interface. Raises ConfigError."""
    key = os.environ.get("CORTEX_ADMIN_KEY")
    if config is not None:
        settings = load_settings(config)
        keys = sorted(admin_keys(settings, config))
        key = key or (keys[0] if keys else None)
        host = "127.0.0.1" if settings.listen.host in ("0.0.0.0", "[::]") else settings.listen.host
        scheme = "http" if settings.gateway.tls_certificate is None else "https"
        url = url or f"{scheme}://{host}:{settings.listen.port}"
    url = (url or DEFAULT_URL).rstrip("/")
    try:
        known = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url: '{url}' is no URL: {error}") from None
    if known.scheme not in ("http", "https") or not known.host:
        raise ConfigError(f"--url: '{url}' is no URL: it must begin with http:// or https:// and a host")
    if key is not None and not key.isascii():
        raise ConfigError("CORTEX_ADMIN_KEY: is no key of a gateway: those are ASCII text")
    return url, {"Authorization": f"Bearer {key}"} if key else {}


def trusted(config: Path | None) -> ssl.SSLContext | bool:
    """Return whose certificate is accepted: the one that the configuration names, else what this host trusts.

    Raises ConfigError.
    """
    chain = None if config is None else load_settings(config).gateway.tls_certificate
    if config is None or chain is None:
        return True
    file = config.absolute().parent / chain
    try:
        context = ssl.create_default_context(cafile=file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    context.check_hostname = False  # it is the very certificate, and was asked for by this host's own address
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def explain_silence(url: str, error: httpx.TransportError) -> str:
    """Return what to tell when no gateway answers."""
    return f"cortex: no gateway answers at {url}: {error}; is it running? (systemctl status cortex)"


def explain(answer: httpx.Response, path: str) -> str:
    """Return what an answer that is no success means, and the remedy."""
    if "fleet/" in path and answer.status_code == httpx.codes.NOT_FOUND:
        remedy = "make a key: cortex keys create --role admin; or set gateway.admin_keys and restart it"
        return f"this gateway has no admin interface; {remedy}"
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return "the gateway wants an admin key: set CORTEX_ADMIN_KEY, or give its configuration with --config"
    return f"the gateway answers {answer.status_code}: {answer.text[:300]}"


def _show_nodes(fleet: _FleetStatus) -> None:
    for node in fleet.nodes:
        version = f", neuron {node.state.version}, {node.state.state}" if node.state is not None else ""
        build = f", {node.state.build}" if node.state is not None and node.state.build else ""
        problem = f": {node.error}" if node.error else ""
        print(f"{node.name} at {node.endpoint}: {node.link}{version}{build}{problem}")
        if node.state is not None:
            if node.state.exposed:
                print(tables.EXPOSED)
            tables.show_devices(node.state.devices)
            tables.show_reasons(node.state.models)
        print()
    if not fleet.nodes:
        print("no neurons are configured")
    tables.show_catalogue(fleet.models)


def _list_nodes(fleet: _FleetStatus) -> None:
    rows = []
    for node in fleet.nodes:
        state = node.state
        if state is None:
            rows.append([node.name, node.endpoint, node.link, *["-"] * 6])
            continue
        serving = sum(d.state in ("ready", "idle", "starting") for d in state.devices)
        total = sum(d.memory_mb or 0 for d in state.devices)
        held = sum(max(d.reserved_mb, d.used_mb or 0) for d in state.devices)
        loaded = sum(m.status == "loaded" for m in state.models)
        rows.append([node.name, node.endpoint, f"{node.link}, {state.state}", state.version,
                     f"{serving}/{len(state.devices)}", f"{held}/{total} MiB", str(loaded),
                     str(sum(m.running for m in state.models)), str(sum(m.queued for m in state.models))])  # fmt: skip
    numbers = ("DEVICES", "MEMORY", "LOADED", "RUNNING", "QUEUED")
    tables.show(("NODE", "ENDPOINT", "STATE", "VERSION", *numbers), rows, right=numbers)
    for node in fleet.nodes:
        if node.error:
            print(f"  {node.name}: {node.error}")
