"""Where a model's file is: `file:/path`, `package:NAME/FILE`, `hf:ORG/REPO:QUANT`, or a name below model_dirs."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from common.errors import Code, RequestError
from common.ids import digest
from neuron.models import shards
from neuron.models.hub_cache import BadReference, find_cached, parse_reference

MOST_PARTS = 1000
"""A name that claims more is no model's."""


def resolve_source(source: str, model_dirs: list[Path], hub_cache: Path) -> Path:
    """Return the existing file behind a profile's source. Nothing is downloaded.

    Raises RequestError(model_loading_failed) that says where it was looked for and what to do.
    """
    kind, _, rest = source.partition(":")
    if kind == "file" and rest:
        path = Path(rest)
        if not path.is_absolute():
            raise _failure(f"source '{source}': the path must be absolute; a name below model_dirs has no 'file:'")
        return _existing(path, source)
    if kind == "package" and rest:
        return _packaged(rest, source)
    if kind == "hf":
        return _cached(source, hub_cache)
    return _below(source, model_dirs)


def identify(paths: Sequence[str]) -> str:
    """Return an identity of what files hold, all parts of a sharded model included: it changes when they do."""
    names = []
    for path in map(Path, paths):
        shard = shards.split(path.name)
        names += [path] if shard is None else [path.with_name(n) for n in _parts(shard)]
    return digest(";".join(map(_state, names)).encode())


def _parts(shard: shards.Shard) -> list[str]:
    return [shards.part_name(shard, part) for part in range(1, min(shard.parts, MOST_PARTS) + 1)]


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}:{error.errno}"
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"


def _packaged(rest: str, source: str) -> Path:
    package, _, name = rest.partition("/")
    if not name:
        raise _failure(f"source '{source}': names no file; write package:NAME/FILE.gguf")
    try:
        # find_spec does not import a top-level package: nothing of it runs here.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        spec = None  # a module that is loaded already and was not imported as one
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise _failure(f"source '{source}': package '{package}' is not installed; try: pip install {distribution}")
    return _existing(_inside(Path(spec.submodule_search_locations[0]), name, source), source)


def _cached(source: str, hub_cache: Path) -> Path:
    try:
        path = find_cached(parse_reference(source), hub_cache)
    except BadReference as error:
        raise _failure(f"source: {error}") from None
    except OSError as error:
        raise _failure(f"source '{source}': {hub_cache}: {error.strerror}") from None
    if path is None:
        raise _failure(f"source '{source}': is not on this host (in {hub_cache}); run: neuronctl pull {source}")
    return path


def _below(source: str, model_dirs: list[Path]) -> Path:
    for folder in model_dirs:
        path = _inside(folder, source, source)
        if _is_file(path, source):
            return path
    places = ", ".join(map(str, model_dirs)) or "model_dirs, which is empty"
    raise _failure(f"source '{source}': no such file below {places}")


def _inside(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _failure(f"source '{source}': must not leave its folder")
    return path


def _existing(path: Path, source: str) -> Path:
    if not _is_file(path, source):
        raise _failure(f"source '{source}': no such file: {path}")
    return path


def _is_file(path: Path, source: str) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise _failure(f"source '{source}': {path}: {error.strerror}") from None


def _failure(text: str) -> RequestError:
    return RequestError(Code.MODEL_LOADING_FAILED, text)
