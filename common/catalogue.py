"""Model profiles and aliases: what a model is called, where its file is, how much of a device it wants."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.config import load_file
from common.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
Capability = Literal["chat", "completion", "embeddings", "rerank", "tools", "vision", "reasoning"]
ModelId = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f]+$")]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How one model is served. Travels with Load; also a row of models.yaml."""

    id: ModelId
    """What clients ask for."""
    source: Annotated[str, Meta(min_length=1)]
    """`file:/path`, `hf:ORG/REPO:QUANT` (fetched with `neuronctl pull`), `package:NAME/FILE.gguf`, or a file name
    below model_dirs. Of a sharded model the first part."""
    quant: str | None = None
    """For people: which quantisation the file is."""
    vram_mb: Positive | None = None
    """MiB of device memory; a floor for what is reserved. Unset: estimated from the file's header."""
    min_device_vram_mb: Positive | None = None
    """Only devices with at least so much memory in all are considered."""
    pinned_on: list[Annotated[str, Meta(min_length=1)]] = []
    """Neurons that are asked first, and that never unload it to make room."""
    residency_priority: int = 100
    """Class: a model never has to make room for one of a lower class; equal classes do so for each other in turns."""
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    """Unload it after so many seconds without a request, unless it is pinned. Unset: only to make room."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """How many neurons are to hold it once it is in use. Further ones are loaded only where nothing has to give way."""
    capabilities: list[Capability] = []
    """What it is listed as able to do before a neuron has read its file."""
    min_devices: Annotated[int, Meta(ge=1, le=16)] = 1
    """Devices of one host that hold equal shares of the model, layer by layer. While it is loaded one worker owns them
    all, and serves the smaller models of these devices too."""
    context: Positive | None = None
    """Tokens one request may use, prompt and answer. Unset: the model's trained context."""
    kv_tokens: Positive | None = None
    """Cells of the KV pool that all slots share. Unset: what fits, at most context × parallel."""
    parallel: Annotated[int, Meta(ge=1, le=256)] = 8
    """Sequences that run at once (slots)."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of models.yaml or models.toml."""

    models: list[Profile] = []
    """One row a model."""
    aliases: dict[ModelId, ModelId] = {}
    """Other names: alias to id."""

    def resolve(self, name: str) -> str:
        """Return the model id behind an alias, or the name itself."""
        return self.aliases.get(name, name)

    def profile(self, model: str) -> Profile | None:
        """Return the profile with exactly this id."""
        return next((p for p in self.models if p.id == model), None)


def load_catalogue(path: Path) -> Catalogue:
    """Read a models file (YAML or TOML by suffix).

    Raises ConfigError: unreadable, an unknown or ill-typed key, an id given twice, an alias of nothing.
    """
    catalogue = load_file(path, Catalogue)
    seen: set[str] = set()
    for index, profile in enumerate(catalogue.models):
        if profile.id in seen:
            raise ConfigError(f"{path}: models[{index}].id: '{profile.id}' is given twice; ids must be unique")
        seen.add(profile.id)
    for alias, target in catalogue.aliases.items():
        if alias in seen:
            raise ConfigError(f"{path}: aliases.{alias}: is also the id of a model; rename one of them")
        if target not in seen:
            known = ", ".join(sorted(seen)) or "none"
            raise ConfigError(f"{path}: aliases.{alias}: no model '{target}' in this file; known: {known}")
    return catalogue


def find_catalogue(config_file: Path, models_config: str | None) -> Path | None:
    """Return the models file that belongs to a configuration file.

    A relative `models_config` is taken from the configuration file's folder, never from the working directory: a
    service starts in `/`. Unset: models.yaml, models.yml or models.toml beside the configuration file, if there is one.
    """
    base = config_file.resolve().parent
    if models_config is not None:
        return base / models_config
    return next((p for p in (base / f"models{s}" for s in (".yaml", ".yml", ".toml")) if p.is_file()), None)
