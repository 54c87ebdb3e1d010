"""neuronctl's commands about the disks of this host: pull, models ls --disk, models rm, models prune."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from common import tables
from common.errors import ConfigError, HelexaError
from common.messages import Models, ModelsReply
from neuron.ctl.client import NeuronClient, NoAnswer
from neuron.models import hub_cache
from neuron.models.library import RESCAN_S, Found, Library
from neuron.settings import NeuronSettings, load_settings

DEFAULT_CONFIG = Path("/etc/neuron/neuron.yaml")
EXTRA = "huggingface_hub is missing; install the neuron extra: pip install 'helexa[neuron]'"


class Places(NamedTuple):
    """Where models lie on this host."""

    folders: list[Path]
    cache: Path


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where models lie."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"the neuron's file (default: {DEFAULT_CONFIG})")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="Hugging Face cache, instead of the configured one")


def find_places(arguments: argparse.Namespace) -> Places:
    """Return where the neuron of this host looks for models. Raises ConfigError."""
    config = arguments.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    settings = load_settings(config) if config is not None else NeuronSettings()
    base = config.resolve().parent if config is not None else Path("/")
    configured = base / settings.hub_cache if settings.hub_cache else None
    cache = arguments.cache.absolute() if arguments.cache else hub_cache.cache_folder(configured)
    return Places([base / d for d in settings.model_dirs], cache)


def run_pull(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Fetch a model from the hub. Raises ConfigError, HelexaError."""
    try:
        from neuron.models.download import format_size, pull
    except ModuleNotFoundError as error:
        raise ConfigError(EXTRA) from error
    reference = hub_cache.parse_reference(arguments.reference)
    cache = find_places(arguments).cache
    with _checksums(as_json) as verified:
        pulled = pull(reference, cache, say=lambda text: print(text, file=sys.stderr), verified=verified)
    if as_json:
        files = [str(p) for p in pulled.files]
        _print({"files": files, "size_bytes": pulled.size_bytes, "fetched_bytes": pulled.fetched_bytes})
        return
    state = f"fetched {format_size(pulled.fetched_bytes)}" if pulled.fetched_bytes else "was already here"
    print(f"{reference}: complete, {state}")
    for path in pulled.files:
        print(f"  {path}")
    print(f"in a profile: source: {reference}; a neuron that looks in {cache} lists it within {RESCAN_S:g} s")


def list_disk(arguments: argparse.Namespace, as_json: bool) -> None:
    """Print the models on disk."""
    library = Library(*find_places(arguments))
    found = library.scan()
    if as_json:
        _print(msgspec.to_builtins(found))
    else:
        tables.show_files(
            [(m.id, m.size_bytes, len(m.files), m.architecture, m.quant, m.context_train, m.path) for m in found],
            {m.id: m.problem for m in found if m.problem},
        )
    for complaint in library.complaints:
        print(f"neuronctl: {complaint}", file=sys.stderr)


def run_rm(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Remove a model from the disk. Raises HelexaError if it is unknown, in use, or not confirmed."""
    places = find_places(arguments)
    model = _find(arguments.model, places)
    _refuse_if_loaded(client, model)
    size = f"{model.size_bytes / 1e9:.2f} GB"
    _confirm(f"remove {model.id} ({len(model.files)} files, {size}) from {Path(model.path).parent}?", arguments.yes)
    freed = _removal().remove(model, places.cache)
    if as_json:
        _print({"model": model.id, "files": model.files, "freed_bytes": freed})
    else:
        print(f"{model.id} is removed, {freed / 1e9:.2f} GB are free again")


def run_prune(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Remove what is left over in the cache. Raises HelexaError if that is not confirmed."""
    cache, removal = find_places(arguments).cache, _removal()
    left = removal.prune(cache, is_trial=True)
    if left and not as_json:
        for what, size in left:
            print(f"  {size / 1e9:8.2f} GB  {what}")
    if left:
        _confirm(f"remove these from {cache}?", arguments.yes)
        left = removal.prune(cache, is_trial=False)
    if as_json:
        _print([{"what": what, "size_bytes": size} for what, size in left])
    else:
        print(f"{sum(s for _, s in left) / 1e9:.2f} GB are free again" if left else f"nothing is left over in {cache}")


def _find(name: str, places: Places) -> Found:
    models = Library(*places).scan()
    if name.startswith("hf:"):
        path = hub_cache.find_cached(hub_cache.parse_reference(name), places.cache)
        found = next((m for m in models if path is not None and str(path) in m.files), None)
    else:
        found = next((m for m in models if m.id == name), None)
    if found is None:
        known = ", ".join(m.id for m in models) or "none"
        raise HelexaError(f"no model '{name}' on this host's disks; there are: {known}")
    return found


def _refuse_if_loaded(client: NeuronClient, model: Found) -> None:
    """Ask the neuron, if one is there: a model in use would come back broken after the next restart of its worker."""
    try:
        reply = client.ask(lambda r: Models(request=r), ModelsReply)
    except NoAnswer:
        return
    if any(m.id == model.id and m.replicas for m in reply.models):
        raise HelexaError(f"{model.id} is loaded; run: neuronctl unload {model.id}")


def _confirm(question: str, is_agreed: bool) -> None:
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise HelexaError(f"{question} say --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise HelexaError("nothing was removed")


def _removal() -> Any:
    try:
        from neuron.models import removal
    except ModuleNotFoundError as error:
        raise ConfigError(EXTRA) from error
    return removal


def _print(content: object) -> None:
    print(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())


@contextmanager
def _checksums(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield lambda name, done, total: None
        return
    columns = (TextColumn("checksum of {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", visible=False)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total, visible=True)
