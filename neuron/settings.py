"""neuron.yaml: what one host serves, and with which of its devices."""

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.config import load_file
from common.endpoint import Endpoint, parse_endpoint
from common.errors import ConfigError
from common.log import LogFormat

SOCKET_NAME = "neuron.sock"
SOCKET_PATH_BYTES = 107

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections of neuron.yaml."""


class DeviceEntry(Section, frozen=True, kw_only=True):
    """One row of `devices:`. A GPU is chosen by exactly one of uuid, name, pci; a CPU device is virtual."""

    kind: Literal["cuda", "cpu"] = "cuda"
    """A GPU, or a virtual device on the CPU."""
    uuid: str | None = None
    """As `neuron --list-devices` prints it; it stays the same across boots and slots."""
    name: str | None = None
    """Part of the product name; it must fit exactly one GPU."""
    pci: str | None = None
    """PCI address, for example 0000:01:00.0."""
    reserve_mb: Annotated[int, Meta(ge=0)] = 0
    """MiB that are never given to models (a desktop, another program)."""
    exclude: bool = False
    """Do not serve with this GPU."""
    memory_mb: Positive | None = None
    """CPU: MiB this device may hold (required). GPU: a share of it, only with test_only."""
    threads: Positive | None = None
    """CPU: threads of its worker. Unset: all cores."""
    test_only: bool = False
    """Allows one GPU to be listed several times with shares, which no production host should do."""


class RestartSettings(Section, frozen=True, kw_only=True):
    """When a worker that died comes back. The first restart is immediate; only crash loops count."""

    backoff_s: Annotated[float, Meta(ge=0)] = 0.5
    """Wait before the second start in a row; doubles with each further one."""
    backoff_max_s: Seconds = 30.0
    """The longest such wait."""
    quarantine_after: Positive = 5
    """Deaths in a row, none with a completed step between them, until the device is quarantined."""
    cool_down_s: Seconds = 300.0
    """A quarantined device is tried again after this time."""


class WatchdogSettings(Section, frozen=True, kw_only=True):
    """How long the engine loop may stay in one phase without a sign of progress, in seconds."""

    starting_s: Seconds = 60.0
    """From the start of a worker until it says so."""
    loading_s: Seconds = 300.0
    """Between two signs of progress while a model is read."""
    warming_s: Seconds = 300.0
    """The first step of a model, for which CUDA may compile."""
    step_s: Seconds = 60.0
    """One decode or prefill step."""
    idle_s: Seconds = 10.0
    """Between two signs of life without work."""
    term_s: Seconds = 2.0
    """Between SIGTERM and SIGKILL."""
    stuck_s: Seconds = 5.0
    """After SIGKILL, until a worker that is still there counts as one that cannot be killed."""
    release_s: Seconds = 20.0
    """For the device's memory to be seen free after a worker is gone."""


class EvictionSettings(Section, frozen=True, kw_only=True):
    """How room is made. Unset keys: as the gateways say in their own `eviction:`, else lru and 50."""

    strategy: Literal["lru", "priority"] | None = None
    """lru: whose last use is longest ago goes first. priority: the lowest residency_priority first."""
    defrag_after_cycles: Positive | None = None
    """An idle worker is restarted after so many loads."""


class LogSettings(Section, frozen=True, kw_only=True):
    """Logging to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this are not written."""
    format: LogFormat = "auto"
    """A line of text for people, or a JSON object a line; auto: JSON where stderr is systemd's journal."""


class NeuronSettings(Section, frozen=True, kw_only=True):
    """The whole file."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w.-]+$")] = msgspec.field(
        default_factory=lambda: socket.gethostname().split(".")[0] or "neuron"
    )
    """What this host is called. Unset: the first part of its host name."""
    listen: str = "tcp://127.0.0.1:13131"
    """Address of the bus, for gateways and neuronctl."""
    metrics_listen: str | None = None
    """Address of this host's own metrics. Unset: none are served here; the gateway's show every neuron."""
    security: Literal["curve", "plaintext"] | None = None
    """curve: encrypted, for authorised keys only. plaintext: for everybody who can connect, so only for a network where
    nobody else is. Unset: plaintext on loopback, curve on any other address."""
    keys_dir: str = "keys"
    """Folder, from this file on, of neuron.key (`neuron keygen`) and authorized_keys (`neuronctl authorize`)."""
    socket_file: str | None = None
    """Through it root and the group that the neuron runs as administer it without a key. Unset: neuron.sock in
    $RUNTIME_DIRECTORY, else none."""
    devices: Literal["auto"] | list[DeviceEntry] = "auto"
    model_dirs: list[str] = msgspec.field(default_factory=lambda: ["/var/lib/neuron/models"])
    """Folders that sources without a kind are looked for in, and that are searched for models nobody described."""
    hub_cache: str | None = None
    """The Hugging Face cache: `neuronctl pull` writes there, and models in it are found. Unset: HF_HUB_CACHE, else
    HF_HOME/hub, else ~/.cache/huggingface/hub of the user the neuron runs as."""
    preload: list[str] = []
    """Models to load at start, by id or alias of models_config."""
    models_config: str | None = None
    """Profiles this neuron knows by itself. Unset: models.yaml or models.toml beside this file, if there."""
    queue_limit: Positive = 256
    """Jobs that may wait for one model; more are answered `busy`."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a stop waits for running jobs."""
    host_memory_mb: Annotated[int, Meta(ge=0)] = msgspec.field(default_factory=lambda: _host_memory_mb())
    """Host memory for what models keep there beside a GPU, and for idle conversations, all workers of this host
    together. Unset: a quarter of the RAM, at most 32 GiB."""
    host_cache_mb: Annotated[int, Meta(ge=0)] | None = None
    """Of it, for idle conversations at most; 0: none. Unset: what the models leave."""
    swap_wait_s: Seconds = 60.0
    """How long a model may wait for others to finish their jobs and make room."""
    idle_exit_s: Seconds = 60.0
    """A worker without a model ends after this time, so that its GPU can sleep; the next load starts another."""
    eviction: EvictionSettings = EvictionSettings()
    state_dir: str | None = None
    """Where state.json is kept: what was loaded, measured sizes, pauses. Unset: $STATE_DIRECTORY, else nowhere."""
    step_budget_ms: Positive = 345
    """How long a prompt chunk may keep running streams waiting."""
    restart: RestartSettings = RestartSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    log: LogSettings = LogSettings()
    engine: str = "llama"
    """Any other value is a Python module with another engine; for tests."""

    @property
    def endpoint(self) -> Endpoint:
        """`listen`, parsed."""
        return parse_endpoint(self.listen, "listen")

    @property
    def metrics_endpoint(self) -> Endpoint | None:
        """`metrics_listen`, parsed."""
        return None if self.metrics_listen is None else parse_endpoint(self.metrics_listen, "metrics_listen")

    @property
    def is_plain(self) -> bool:
        """Whether the bus speaks plain text, to everybody."""
        return self.security == "plaintext" or (self.security is None and self.endpoint.is_loopback)

    @property
    def is_exposed(self) -> bool:
        """Whether other hosts reach a bus that is plain text."""
        return self.is_plain and not self.endpoint.is_loopback


def load_settings(path: Path) -> NeuronSettings:
    """Read neuron.yaml or neuron.toml, with NEURON_… overrides. Raises ConfigError."""
    settings = load_file(path, NeuronSettings, env_prefix="NEURON_")
    try:
        _ = settings.endpoint, settings.metrics_endpoint
        for index, entry in enumerate(settings.devices if isinstance(settings.devices, list) else []):
            _check_device(entry, f"devices[{index}]")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings


def find_socket_file(configured: str | None) -> Path | None:
    """Return where administrators of this host connect; None: nowhere. Raises ConfigError if the path is too long."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    path = configured or (f"{folder}/{SOCKET_NAME}" if folder else None)
    if path is not None and len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ConfigError(f"socket_file: {path}: is longer than the {SOCKET_PATH_BYTES} bytes that the system allows")
    return Path(path) if path is not None else None


def _host_memory_mb() -> int:
    ram_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return min(ram_mb // 4, 32 * 1024)


def _check_device(entry: DeviceEntry, key: str) -> None:
    selectors = [k for k in ("uuid", "name", "pci") if getattr(entry, k) is not None]
    if entry.kind == "cpu":
        if entry.memory_mb is None:
            raise ConfigError(f"{key}.memory_mb: is required for a device of kind cpu: MiB that it may hold")
        if selectors or entry.exclude:
            raise ConfigError(f"{key}: a device of kind cpu takes memory_mb, threads and reserve_mb only")
    else:
        if len(selectors) != 1:
            raise ConfigError(f"{key}: needs exactly one of uuid, name, pci (see `neuron --list-devices`)")
        if entry.threads is not None:
            raise ConfigError(f"{key}.threads: only for a device of kind cpu")
        if entry.memory_mb is not None and not entry.test_only:
            raise ConfigError(f"{key}.memory_mb: a share of a GPU needs test_only: true; for a reserve use reserve_mb")
