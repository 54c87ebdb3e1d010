"""`neuronctl doctor`: what keeps this host from serving, and what to do about it."""

import argparse
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.catalogue import Catalogue, find_catalogue, load_catalogue
from common.checkup import Finding, check_port, check_version, show
from common.errors import ConfigError, HelexaError
from common.messages import Models, ModelsReply, Status, StatusReply, Version, VersionReply, WorkerHello
from neuron.broker.authorized import read_authorized
from neuron.ctl.client import NeuronClient, NoAnswer
from neuron.ctl.disk import DEFAULT_CONFIG
from neuron.devices import host_memory_mb, read_engine, read_once
from neuron.discovery import Device, resolve_devices, worker_backend_problem
from neuron.models.hub_cache import cache_folder
from neuron.models.library import Library
from neuron.settings import NeuronSettings, load_settings

LOW_BYTES = 5 * 10**9
"""Less than a small model's worth."""
OFF_BY = 0.10
"""An estimate that misses by more than this share is worth a look."""
_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
SERVICE_USER = "neuron"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"the neuron's file (default: {DEFAULT_CONFIG})")
    parser.add_argument("--user", metavar="NAME", help=f"whom the service runs as (default: {SERVICE_USER}, else you)")


def run(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Look at everything, print it. Raises HelexaError if something fails."""
    failures = show(list(examine(client, arguments.config, arguments.user)), as_json=as_json)
    if failures:
        raise HelexaError(f"{failures} of the checks failed")


def examine(client: NeuronClient, config: Path | None, user: str | None) -> Iterator[Finding]:
    """Yield what is found, one subject after the other."""
    config = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    try:
        settings = load_settings(config) if config is not None else NeuronSettings()
        models_file = find_catalogue(config, settings.models_config) if config is not None else None
        catalogue = load_catalogue(models_file) if models_file is not None else Catalogue()
    except ConfigError as error:
        yield Finding(
            "failure", "configuration", str(error), "correct it; `neuron --check --config FILE` reads it again"
        )
        return
    shown = f"{config}, {len(catalogue.models)} profiles" if config else f"{DEFAULT_CONFIG} does not exist: defaults"
    yield Finding("ok", "configuration", shown)
    yield from _devices(settings)
    yield from _disks(settings, config, user)
    yield from _service(client, settings)


def _devices(settings: NeuronSettings) -> Iterator[Finding]:
    try:
        reading = read_once()
        devices = resolve_devices(settings.devices, reading, host_memory_mb())
    except ConfigError as error:
        yield Finding("failure", "devices", str(error))
        return
    if reading.driver:
        yield Finding("ok", "driver", f"NVIDIA {reading.driver}, {len(reading.devices)} GPUs")
    for device in devices:
        if device.unavailable:
            yield Finding("failure", f"device {device.uuid}", device.unavailable)
        else:
            yield Finding("ok", f"device {device.uuid}", f"{device.name}, {device.memory_mb or 'unknown'} MiB")
    if reading.pci_gpus:
        yield from _nodes()
    if settings.engine == "llama":
        yield _engine(devices)


def _nodes() -> Iterator[Finding]:
    for node in _NODES:
        if not os.path.exists(node):
            remedy = "create it: nvidia-modprobe -u -c 0 (in a container: start it with the GPUs passed in)"
            yield Finding("failure", f"device node {node}", "does not exist", remedy)
        elif not os.access(node, os.R_OK | os.W_OK):
            remedy = "add the user to the group that owns it, often video or render"
            yield Finding("failure", f"device node {node}", "may not be opened by this user", remedy)


def _engine(devices: list[Device]) -> Finding:
    gpu = next((d for d in devices if d.kind == "cuda"), None)
    try:
        build, backend, names = read_engine("cuda" if gpu is not None else "cpu")
    except ConfigError as error:
        return Finding("failure", "llama.cpp", str(error), "install the neuron extra: pip install 'helexa[neuron]'")
    hello = WorkerHello(pid=0, incarnation="", build=build, backend=backend, devices=names)
    problem = worker_backend_problem([gpu], hello) if gpu is not None else None
    if problem is not None:
        return Finding("failure", "llama.cpp", problem)
    return Finding("ok", "llama.cpp", f"{build}, backend {backend}")


def _disks(settings: NeuronSettings, config: Path | None, user: str | None) -> Iterator[Finding]:
    base = config.resolve().parent if config is not None else Path("/")
    folders = [base / d for d in settings.model_dirs]
    cache = cache_folder(base / settings.hub_cache if settings.hub_cache else None)
    try:
        account = _account(user)
    except KeyError:
        yield Finding("failure", "service user", f"there is no user '{user}' on this host", "name another with --user")
        return
    for folder in folders:
        if not folder.is_dir():
            remedy = "create it, or correct model_dirs"
            yield Finding("warning", "model_dirs", f"{folder} does not exist", remedy)
    for folder in (f for f in (*folders, cache) if f.is_dir()):
        barrier = find_barrier(folder, account.pw_uid, set(os.getgrouplist(account.pw_name, account.pw_gid)))
        free = shutil.disk_usage(folder).free
        if barrier is not None:
            remedy = f"let that user in: chmod o+rx {barrier}, or setfacl -m u:{account.pw_name}:rx {barrier}"
            yield Finding("failure", str(folder), f"{account.pw_name} may not read {barrier}", remedy)
        elif free < LOW_BYTES:
            remedy = "neuronctl models prune, neuronctl models rm"
            yield Finding("warning", str(folder), f"only {free / 1e9:.1f} GB are free", remedy)
        else:
            yield Finding("ok", str(folder), f"readable by {account.pw_name}, {free / 1e9:.0f} GB free")
    library = Library(folders, cache)
    found = library.scan()
    for model in (m for m in found if m.problem):
        remedy = f"fetch it again, or: neuronctl models rm {model.id}"
        yield Finding("warning", f"model {model.id}", f"{model.problem} ({model.path})", remedy)
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    for model in found:
        barriers = (find_barrier(Path(f), account.pw_uid, groups) for f in model.files if os.path.exists(f))
        barrier = next((b for b in barriers if b is not None and b.is_file()), None)
        if barrier is not None:
            remedy = f"let that user read it: chmod o+r {barrier}, or setfacl -m u:{account.pw_name}:r {barrier}"
            yield Finding("failure", f"model {model.id}", f"{account.pw_name} may not read {barrier}", remedy)
    yield Finding("ok", "models on disk", f"{sum(m.problem is None for m in found)}")
    yield from _keys(settings, base, account.pw_name, account.pw_uid, groups)


def _keys(settings: NeuronSettings, base: Path, name: str, uid: int, groups: set[int]) -> Iterator[Finding]:
    """Look at what a bus that is not plain text needs."""
    if settings.is_plain:
        return
    folder = base / settings.keys_dir
    key = folder / "neuron.key"
    if not key.exists():
        remedy = "neuron keygen, then on each gateway what it says"
        yield Finding("failure", "keys", f"{key} is missing, and {settings.endpoint} asks for one", remedy)
        return
    barrier = find_barrier(key, uid, groups)
    if barrier is not None:
        yield Finding("failure", "keys", f"{name} may not read {barrier}", f"chown {name} {barrier}")
        return
    try:
        roles = list(read_authorized(folder / "authorized_keys").values())
    except ConfigError as error:
        yield Finding("failure", "keys", str(error), "correct that line")
        return
    if "gateway" in roles:
        yield Finding("ok", "keys", f"gateways that are authorised: {roles.count('gateway')}")
    else:
        remedy = "on the gateway: cortex keygen; here: neuronctl authorize gateway KEY"
        yield Finding("warning", "keys", "no gateway is authorised, so none can use this host", remedy)


def _account(user: str | None) -> pwd.struct_passwd:
    if user is not None:
        return pwd.getpwnam(user)
    me = pwd.getpwuid(os.getuid())
    is_service_here = os.getuid() == 0 and any(p.pw_name == SERVICE_USER for p in pwd.getpwall())
    return pwd.getpwnam(SERVICE_USER) if is_service_here else me


def find_barrier(folder: Path, uid: int, groups: set[int]) -> Path | None:
    """Return the first place on the way that the user may not enter or, at its end, read; None: none.

    Judged by owner, group and mode; access lists are not looked at.
    """
    if uid == 0:
        return None
    folder = folder.resolve()
    for place in (*reversed(folder.parents), folder):
        status = place.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
        wanted = 0o1 if place != folder else 0o5 if folder.is_dir() else 0o4
        if (status.st_mode >> shift) & wanted != wanted:
            return place
    return None


def _service(client: NeuronClient, settings: NeuronSettings) -> Iterator[Finding]:
    if settings.is_exposed:
        yield Finding("warning", "listen", f"the bus is open to others at {settings.endpoint}, without encryption",
                      "remove security: plaintext, or let only gateways reach this port (firewall)")  # fmt: skip
    try:
        version = client.ask(lambda r: Version(request=r), VersionReply)
        models = client.ask(lambda r: Models(request=r), ModelsReply).models
    except NoAnswer:
        yield check_port("service", settings.endpoint, "neuron")
        return
    yield check_version("service", version.version)
    peers = client.ask(lambda r: Status(request=r), StatusReply).peers
    if peers:
        yield Finding("ok", "link", f"{peers} gateway processes are connected")
    else:
        remedy = "on a gateway: cortex doctor; is this host among its neurons, and its port open to it?"
        yield Finding("warning", "link", "no gateway is connected", remedy)
    for model in models:
        for replica in model.replicas:
            estimate, measured = model.memory_mb, replica.memory_mb
            if replica.status != "loaded" or not estimate or not measured:
                continue
            text = f"estimated {estimate} MiB, measured {measured} MiB on {replica.device}"
            is_off = abs(measured - estimate) > OFF_BY * measured
            yield Finding("warning" if is_off else "ok", f"model {model.id}", text)
        if model.status == "failed":
            yield Finding("warning", f"model {model.id}", model.reason or "failed to load")
