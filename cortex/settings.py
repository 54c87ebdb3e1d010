"""cortex.toml (or .yaml): where the gateway listens and which neurons stand behind it."""

import os
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.config import load_file
from common.endpoint import Endpoint, parse_endpoint
from common.errors import ConfigError
from common.log import LogFormat
from common.messages import Eviction
from cortex.access.keys import UNLIMITED, Limits
from cortex.capture.store import Store

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections of cortex.toml."""


class LogSettings(Section, frozen=True, kw_only=True):
    """Logging to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this are not written."""
    format: LogFormat = "auto"
    """A line of text for people, or a JSON object a line; auto: JSON where stderr is systemd's journal."""


class GatewaySettings(Section, frozen=True, kw_only=True):
    """The public side."""

    listen: str = "0.0.0.0:31313"
    """Address of the API."""
    metrics_listen: str | None = None
    """Address of the metrics. Unset: none are served."""
    workers: Annotated[int, Meta(ge=1, le=256)] = max(1, min(4, os.cpu_count() or 1))
    """Gateway processes. Unset: one a core, at most 4."""
    admin_keys: list[str] | str = []
    """Keys for /fleet/…: a list, or a file of mode 0600 with one key a line. None: /fleet/… does not exist."""
    first_byte_s: Seconds = 2.0
    """A stream that still waits after this time gets its status and a first comment."""
    ping_s: Seconds = 2.0
    """A comment after this much silence."""
    budget_s: Seconds = 600.0
    """For queue, model load and prefill together."""
    recovery_s: Annotated[float, Meta(ge=0)] = 60.0
    """How long a request that lost its worker or neuron waits to go on elsewhere, or there again."""
    node_grace_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a lost neuron is waited for before its models are loaded elsewhere for the requests it had."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a stop waits for running requests."""
    max_body_mb: Positive = 64
    """MiB; a larger request body is refused."""
    tls_certificate: str | None = None
    """PEM file of the API's certificate and those that lead to its root, taken anew when it changes. Unset: no TLS."""
    tls_key: str | None = None
    """PEM file of its key, not readable by all."""
    state_dir: str | None = None
    """Where usage is kept, and what of the limits was used. Unset: $STATE_DIRECTORY, else nowhere: no usage is kept,
    and limits begin anew with a restart."""

    @property
    def state_folder(self) -> Path | None:
        """`state_dir`, or what the service manager says."""
        folder = self.state_dir or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        return Path(folder) if folder else None


class EvictionSettings(Section, frozen=True, kw_only=True):
    """How neurons make room; a neuron's own settings win."""

    strategy: Literal["lru", "priority"] = "lru"
    """Who goes first: the model that was not used for longest, or the lowest priority."""
    defrag_after_cycles: Positive = 50
    """Loads and unloads on a device until its memory may be compacted."""


class MessagesSettings(Section, frozen=True, kw_only=True):
    """Anthropic's endpoint, /v1/messages."""

    normalize_billing_stamp: bool = True
    """Make the five characters after `cch=` constant in a system block that begins with `x-anthropic-billing-header:`:
    Claude Code changes them with each request, after which no prompt would share its beginning with the one before."""


class LimitSettings(Section, frozen=True, kw_only=True):
    """What one client may make the gateway hold or wait for."""

    header_s: Seconds = 20.0
    """For the header of a request, from its first byte on, or from the beginning of a new connection."""
    idle_s: Seconds = 75.0
    """A connection without a request is closed after this time."""
    body_s: Seconds = 300.0
    """For the body of a request."""
    write_stall_s: Seconds = 60.0
    """A client that takes nothing of its answer for so long is gone."""
    connections: Positive = 10000
    """At a time, in each gateway process."""
    connections_per_address: Positive = 512
    """At a time, in each gateway process; of `trusted_proxies` any number."""
    trusted_proxies: list[str] | None = None
    """Addresses through which many clients come. Unset: those of this host itself, 127.0.0.1 and ::1."""
    request_line_bytes: Annotated[int, Meta(ge=256, le=8190)] = 4094
    """Method, path and query."""
    header_fields: Annotated[int, Meta(ge=16, le=32768)] = 100
    """In one request."""
    header_field_bytes: Annotated[int, Meta(ge=256, le=65536)] = 8190
    """Of each."""
    messages: Positive = 10000
    """In one request."""
    tools: Positive = 1024
    """In one request."""
    schema_kb: Positive = 1024
    """KiB, of all tools together, and of the schema of an answer. Neurons take 5,000 parts of one."""
    grammar_kb: Annotated[int, Meta(ge=1, le=64)] = 64
    """KiB; more than 64 no neuron takes."""
    nesting: Positive = 100
    """Levels of objects and lists in messages, tools and schemas."""
    stop: Positive = 64
    """Strings that end an answer. OpenAI's endpoints take 16."""


class BrowserSettings(Section, frozen=True, kw_only=True):
    """Pages in browsers. Other programs are not concerned by `origins`."""

    hosts: list[str] | None = None
    """The only names, besides numbers and localhost, to answer to. Unset: any; but pages that send no key are let in
    only by numbers, localhost and this host's own name."""
    origins: list[str] = []
    """Whose pages may ask, as `https://chat.example.org`, or `*` for everybody's (CORS). None: only those of the
    gateway itself."""


class AccessSettings(Section, frozen=True, kw_only=True):
    """Who may ask; keys are made with `cortex keys create`."""

    anonymous: bool | None = None
    """Let in whoever sends no key of ours. Unset: until the first key is made."""
    anonymous_limits: Limits = UNLIMITED
    """Of all of those together."""
    metrics_key: bool = False
    """Show the metrics only to keys of the roles metrics and admin."""


class CaptureSettings(Section, frozen=True, kw_only=True):
    """Keep whole requests on disk, prompts and answers included, for `cortex capture` and `cortex replay`."""

    folder: str | None = None
    """Where; made if it is missing, for its owner alone. Relative to this file. Unset: nothing is kept."""
    keep: Positive = 100
    """So many requests; the oldest go."""
    expire_s: Seconds = 86400.0
    """A request goes after this time, whatever their number."""


class NeuronEntry(Section, frozen=True, kw_only=True):
    """One neuron behind this gateway."""

    name: Annotated[str, Meta(min_length=1)]
    """What it is called in lists, logs and errors."""
    endpoint: str
    """host:port of its bus."""


class CortexSettings(Section, frozen=True, kw_only=True):
    """The whole file."""

    gateway: GatewaySettings = GatewaySettings()
    access: AccessSettings = AccessSettings()
    browsers: BrowserSettings = BrowserSettings()
    limits: LimitSettings = LimitSettings()
    eviction: EvictionSettings = EvictionSettings()
    messages: MessagesSettings = MessagesSettings()
    neurons: list[NeuronEntry] = []
    capture: CaptureSettings = CaptureSettings()
    models_config: str | None = None
    """Unset: models.yaml or models.toml beside this file, if there."""
    log: LogSettings = LogSettings()

    @property
    def listen(self) -> Endpoint:
        """`gateway.listen`, parsed."""
        return parse_endpoint(self.gateway.listen, "gateway.listen")

    @property
    def metrics_listen(self) -> Endpoint | None:
        """`gateway.metrics_listen`, parsed."""
        address = self.gateway.metrics_listen
        return None if address is None else parse_endpoint(address, "gateway.metrics_listen")

    def neuron_endpoints(self) -> dict[str, Endpoint]:
        """Map the neurons' names to their addresses."""
        return {n.name: parse_endpoint(n.endpoint, f"neurons[{i}].endpoint") for i, n in enumerate(self.neurons)}

    def eviction_message(self) -> Eviction:
        """Return the settings that travel in Hello."""
        return Eviction(strategy=self.eviction.strategy, defrag_after_cycles=self.eviction.defrag_after_cycles)


def load_settings(path: Path) -> CortexSettings:
    """Read cortex.toml or cortex.yaml, with CORTEX_… overrides. Raises ConfigError."""
    settings = load_file(path, CortexSettings, env_prefix="CORTEX_")
    try:
        _ = settings.listen, settings.metrics_listen
        endpoints = settings.neuron_endpoints()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if len(endpoints) != len(settings.neurons):
        names = [n.name for n in settings.neurons]
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"{path}: neurons: the name '{twice}' is given twice")
    return settings


def admin_keys(settings: CortexSettings, config_file: Path) -> frozenset[str]:
    """Return the admin keys, read from their file where the configuration names one. Raises ConfigError."""
    keys = settings.gateway.admin_keys
    if isinstance(keys, str):
        path = config_file.resolve().parent / keys
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise ConfigError(f"{path}: admin keys must not be readable by others; run: chmod 600 {path}")
            keys = [line.strip() for line in path.read_text().splitlines()]
        except OSError as error:
            raise ConfigError(f"{config_file}: gateway.admin_keys: {path}: {error.strerror}") from None
    keys = [k for k in keys if k and not k.startswith("#")]
    short = [k for k in keys if len(k) < 16]
    if short:
        raise ConfigError(
            f"{config_file}: gateway.admin_keys: a key is shorter than 16 characters; try: openssl rand -hex 24"
        )
    return frozenset(keys)


def capture_store(settings: CortexSettings, config_file: Path) -> Store | None:
    """Return where requests are captured, None if they are not."""
    capture = settings.capture
    if capture.folder is None:
        return None
    return Store(config_file.resolve().parent / capture.folder, keep=capture.keep, expire_s=capture.expire_s)
