"""Model profiles and aliases: what a model is called, where its file is, how much of a device it wants."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, structs

from common.config import load_file
from common.engine_options import EngineOptions, SamplingDefaults, faults, merged
from common.errors import ConfigError
from common.ids import digest

Positive = Annotated[int, Meta(ge=1)]
Capability = Literal["chat", "completion", "embeddings", "rerank", "tools", "vision", "reasoning"]
ModelId = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f]+$")]


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to serve a model. What it leaves open is as in its profile."""

    source: Annotated[str, Meta(min_length=1)] | None = None
    """Where its file is."""
    quant: str | None = None
    """Of a source hf:ORG/REPO: which of its files."""
    context: Positive | None = None
    """Tokens one request may use."""
    kv_tokens: Positive | None = None
    """Cells of the KV pool."""
    parallel: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Slots."""
    vram_mb: Positive | None = None
    """MiB of device memory that are reserved at least."""
    min_device_vram_mb: Positive | None = None
    """Only for devices with so much memory in all."""
    hosts: list[Annotated[str, Meta(min_length=1)]] = []
    """Only for these neurons."""
    engine: EngineOptions = EngineOptions()


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
    download: Literal["never", "on_demand"] = "never"
    """Whether a request, or a load, fetches a source hf:… that is not on the host; it waits as for a load. Never: the
    host's admin runs `neuronctl pull`."""
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
    engine: EngineOptions = EngineOptions()
    sampling: SamplingDefaults = SamplingDefaults()

    variants: list[Variant] = []
    """Ways to serve it, best first: a neuron takes the first that is for it, is there, and fits with all its layers."""

    def for_host(self, name: str) -> list["Profile"]:
        """Return what a neuron may serve it as, best first: its variants, or itself if it has none."""
        if not self.variants:
            return [self]
        return [self._as(v) for v in self.variants if not v.hosts or name in v.hosts]

    def _as(self, variant: Variant) -> "Profile":
        names = ("context", "kv_tokens", "parallel", "vram_mb", "min_device_vram_mb", "quant")
        changes = {n: value for n in names if (value := getattr(variant, n)) is not None}
        source = variant.source or self.source
        if variant.quant is not None and source.startswith("hf:") and source.count(":") == 1:
            source += f":{variant.quant}"
        engine = merged(self.engine, variant.engine)
        return structs.replace(self, **changes, source=source, engine=engine, variants=[])

    @property
    def fingerprint(self) -> str:
        """Identity of all that it says."""
        return digest(msgspec.msgpack.encode(self))


class Alias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What another name stands for, and what its requests do not have to say."""

    model: ModelId
    """The model it stands for."""
    other: Annotated[str, Meta(min_length=1)] | None = msgspec.field(default=None, name="else")
    """The model that is used instead while the first one is not resident, so that nothing has to make room for it."""
    sampling: SamplingDefaults = SamplingDefaults()
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template; a request's own stand above them."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How much the model is to think, where a request says nothing."""
    priority: Annotated[int, Meta(ge=0)] | None = None
    """Of its requests, the lowest number first; 100 is ordinary. Those without a key come last, whatever theirs is."""


class Defaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What holds for every model of the file that does not say otherwise, key by key."""

    context: Positive | None = None
    """As in a profile."""
    kv_tokens: Positive | None = None
    """As in a profile."""
    parallel: Annotated[int, Meta(ge=1, le=256)] | None = None
    """As in a profile."""
    ttl_s: Annotated[float, Meta(gt=0)] | None = None
    """As in a profile."""
    engine: EngineOptions = EngineOptions()
    sampling: SamplingDefaults = SamplingDefaults()

    def fill(self, profile: Profile) -> Profile:
        """Return the profile with what it leaves open."""
        sizes = {
            name: value
            for name in ("context", "kv_tokens", "parallel", "ttl_s")
            if (value := getattr(self, name)) is not None and getattr(profile, name) == getattr(_BARE, name)
        }
        engine, sampling = merged(self.engine, profile.engine), merged(self.sampling, profile.sampling)
        return structs.replace(profile, **sizes, engine=engine, sampling=sampling)


_BARE = Profile(id="bare", source="bare")


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of models.yaml or models.toml."""

    models: list[Profile] = []
    """One row a model."""
    aliases: dict[ModelId, ModelId | Alias] = {}
    """Other names: alias to id, or to a section. With `*` it is a pattern; the longest one that matches counts."""
    defaults: Defaults = Defaults()

    def resolve(self, name: str) -> str:
        """Return the model id behind an alias, or the name itself."""
        return self.targets().get(name, name)

    def targets(self) -> dict[str, str]:
        """Map the aliases to model ids."""
        return {name: a if isinstance(a, str) else a.model for name, a in self.aliases.items()}

    def profile(self, model: str) -> Profile | None:
        """Return the profile with exactly this id."""
        return next((p for p in self.models if p.id == model), None)


def load_catalogue(path: Path) -> Catalogue:
    """Read a models file (YAML or TOML by suffix), its defaults filled into its profiles.

    Raises ConfigError: unreadable, an unknown or ill-typed key, an id given twice, an alias of nothing, options that
    cannot work.
    """
    catalogue = load_file(path, Catalogue)
    _check_engine(path, "defaults.engine", catalogue.defaults.engine)
    catalogue = structs.replace(catalogue, models=[catalogue.defaults.fill(p) for p in catalogue.models])
    for index, profile in enumerate(catalogue.models):
        _check_engine(path, f"models[{index}].engine", profile.engine, profile.parallel, profile.min_devices)
        for number, variant in enumerate(profile.variants):
            engine, parallel = merged(profile.engine, variant.engine), variant.parallel or profile.parallel
            _check_engine(path, f"models[{index}].variants[{number}].engine", engine, parallel, profile.min_devices)
    seen: set[str] = set()
    for index, profile in enumerate(catalogue.models):
        if profile.id in seen:
            raise ConfigError(f"{path}: models[{index}].id: '{profile.id}' is given twice; ids must be unique")
        seen.add(profile.id)
    for name, alias in catalogue.aliases.items():
        if name in seen:
            raise ConfigError(f"{path}: aliases.{name}: is also the id of a model; rename one of them")
        for target in [alias] if isinstance(alias, str) else [alias.model, alias.other]:
            if target is not None and target not in seen:
                known = ", ".join(sorted(seen)) or "none"
                raise ConfigError(f"{path}: aliases.{name}: no model '{target}' in this file; known: {known}")
    return catalogue


def _check_engine(path: Path, where: str, options: EngineOptions, parallel: int = 1, devices: int = 1) -> None:
    for key, problem in faults(options, parallel, devices):
        raise ConfigError(f"{path}: {where}.{key}: {problem}")


def find_catalogue(config_file: Path, models_config: str | None) -> Path | None:
    """Return the models file that belongs to a configuration file.

    A relative `models_config` is taken from the configuration file's folder, never from the working directory: a
    service starts in `/`. Unset: models.yaml, models.yml or models.toml beside the configuration file, if there is one.
    """
    base = config_file.resolve().parent
    if models_config is not None:
        return base / models_config
    return next((p for p in (base / f"models{s}" for s in (".yaml", ".yml", ".toml")) if p.is_file()), None)
