"""How llama.cpp runs a model and how tokens are chosen, as a profile may say it: llama-server's names and values."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, structs

T = TypeVar("T", bound=msgspec.Struct)
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Factor = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]

CACHE_BYTES: dict[str, float] = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32, "iq4_nl": 18 / 32,
    "q5_0": 22 / 32, "q5_1": 24 / 32,
}  # fmt: skip
"""Of one element."""
CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
"""Their numbers in ggml (enum ggml_type)."""
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Names of the tensors that hold a mixture's experts, as llama-server's --cpu-moe finds them."""
BATCH_TOKENS = 512
"""Rows of one decode call at most, unless `batch` says otherwise: how long an abort may have to wait."""
SCORES_MB = 128
"""Attention scores that a batch may hold at a time on a CPU."""
LEAST_ROWS = 16
"""Of a batch on a CPU, before flash attention is taken to save memory."""
_KEY_BYTES = 127
"""llama_model_kv_override.key, and its text."""
_FOREIGN = re.compile(r"\(\?(?!:|=|!)|[*+?}]\+|\\[pPAZzGkK]")
"""What Python's patterns know and ECMAScript's do not: std::regex would end the process."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, eq=True):
    """How llama.cpp runs the model, under llama-server's names. Unset: llama.cpp's default, or what fits."""

    refused: ClassVar[dict[str, str]] = {
        "mmproj": "images are not read yet; leave it out",
        "lora": "adapters are not loaded yet; leave it out",
        "draft": "speculative decoding does not work yet; leave it out",
    }
    """Keys that llama-server has and that do nothing here yet, with what is said of them."""

    n_gpu_layers: Count | Literal["all", "auto"] | None = None
    """Layers in the GPU's memory, the output layer counted as one. Unset or auto: as many as fit."""
    n_cpu_moe: Count | None = None
    """The experts of so many layers, from the first on, stay in host memory."""
    cpu_moe: bool | None = None
    """All experts stay in host memory."""
    override_tensor: list[str] = []
    """`PATTERN=BUFFER`: tensors whose name the pattern is found in are held in that buffer type, for example CPU."""
    tensor_split: list[Annotated[float, Meta(ge=0)]] = []
    """Shares of the model for each of its devices."""
    split_mode: Literal["none", "layer", "row", "tensor"] | None = None
    """How a model is laid over its devices."""
    main_gpu: Count | None = None
    """The device of a model that is not split: an index into its devices."""
    flash_attn: bool | Literal["on", "off", "auto"] | None = None
    """Flash attention. Unset: llama.cpp chooses; on a CPU the cheaper of the two for this model is taken."""
    cache_type_k: CacheType | None = None
    """Type of the keys in the KV cache. Unset: f16."""
    cache_type_v: CacheType | None = None
    """Type of the values in the KV cache. Unset: f16. A quantised one needs flash attention."""
    batch: Annotated[int, Meta(ge=32, le=4096)] | None = None
    """Tokens of one step at most. Unset: 512."""
    ubatch: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Tokens that are computed at once, at most `batch`; more take more memory and read prompts faster."""
    threads: Annotated[int, Meta(ge=1, le=512)] | None = None
    """CPU threads for single tokens. Unset: those of the device."""
    threads_batch: Annotated[int, Meta(ge=1, le=512)] | None = None
    """CPU threads for prompts. Unset: `threads`."""
    rope_scaling: Literal["none", "linear", "yarn", "longrope"] | None = None
    """How positions are scaled beyond the trained context. Unset: as the file says."""
    rope_scale: Factor | None = None
    """The context grows by this factor; the same as rope_freq_scale 1/N."""
    rope_freq_base: Factor | None = None
    """RoPE's base frequency. Unset: as the file says."""
    rope_freq_scale: Factor | None = None
    """RoPE's frequency factor. Unset: as the file says."""
    yarn_orig_ctx: Positive | None = None
    """The context the model was trained for, for YaRN. Unset: as the file says."""
    yarn_ext_factor: float | None = None
    """YaRN: share of extrapolation. Unset: as the file says."""
    yarn_attn_factor: float | None = None
    """YaRN: factor of the attention's size; llama.cpp computes its own unless yarn_ext_factor is 0."""
    yarn_beta_slow: float | None = None
    """YaRN: high correction dimension."""
    yarn_beta_fast: float | None = None
    """YaRN: low correction dimension."""
    swa_full: bool | None = None
    """Layers that look back at a window keep whole contexts all the same: prompts can be continued anywhere."""
    load_mode: Literal["mmap", "read", "direct_io"] | None = None
    """How the file is read. Unset: mapped, unless a device cannot take that."""
    mlock: bool | None = None
    """Keep the weights in RAM; needs RLIMIT_MEMLOCK."""
    numa: Literal["distribute", "isolate", "numactl"] | None = None
    """How a worker uses the nodes of a NUMA host; of its first model with this key, for all its models."""
    override_kv: list[str] = []
    """`KEY=TYPE:VALUE`, TYPE one of int, float, bool, str: changes a value of the file's header."""
    chat_template_file: str | None = None
    """Absolute path, on the neuron's host, of a chat template to use instead of the file's."""

    @property
    def flash(self) -> Literal["on", "off", "auto"] | None:
        """`flash_attn`; YAML reads an unquoted on and off as true and false."""
        return ("on" if self.flash_attn else "off") if isinstance(self.flash_attn, bool) else self.flash_attn

    @property
    def stretch(self) -> float:
        """By how much the trained context is exceeded; infinite where only the user can know."""
        if self.rope_freq_base is not None:
            return float("inf")
        if self.rope_scaling == "none":
            return 1.0
        if self.rope_scale is not None:
            return max(1.0, self.rope_scale)
        return max(1.0, 1.0 / self.rope_freq_scale) if self.rope_freq_scale is not None else 1.0

    def host_patterns(self, layers: int) -> list[str]:
        """Return the patterns of tensors that stay in host memory, those that come first first."""
        patterns = [p for p, buffer in map(split_override, self.override_tensor) if buffer.startswith("CPU")]
        if self.cpu_moe:
            patterns.append(EXPERTS)
        return patterns + [rf"blk\.{i}{EXPERTS}" for i in range(min(self.n_cpu_moe or 0, layers))]


class SamplingDefaults(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, eq=True
):
    """How tokens are chosen where a request says nothing.

    Unset: as the file's general.sampling keys say, else llama.cpp's default.
    """

    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    """0 takes the likeliest."""
    top_k: Annotated[int, Meta(ge=0)] | None = None
    """Only the k likeliest; 0: all."""
    top_p: Share | None = None
    """Only the likeliest that together reach p."""
    min_p: Share | None = None
    """Only those at least p times as likely as the likeliest."""
    typical_p: Share | None = None
    """Only those whose surprise is near the expected one, together p."""
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    """Divides the logits of recent tokens; 1: none."""
    repeat_last_n: Annotated[int, Meta(ge=-1)] | None = None
    """How many tokens are recent; -1: the whole context."""
    presence_penalty: Annotated[float, Meta(ge=-100, le=100)] | None = None
    """Taken from the logits of recent tokens, once."""
    frequency_penalty: Annotated[float, Meta(ge=-100, le=100)] | None = None
    """Taken from the logits of recent tokens, for each time."""
    xtc_probability: Share | None = None
    """How often the likeliest are left out."""
    xtc_threshold: Share | None = None
    """All above it but the least likely of them."""
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Strength of the penalty for repeated sequences; 0: none."""
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    """Its base."""
    dry_allowed_length: Annotated[int, Meta(ge=0, le=2**20)] | None = None
    """Longer repetitions are penalised."""
    dry_penalty_last_n: Annotated[int, Meta(ge=-1)] | None = None
    """Over so many tokens; -1: the whole context."""
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    """1 or 2: the version to use instead of top_k and the like."""
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Its surprise."""
    mirostat_eta: Share | None = None
    """Its rate."""


def merged(under: T, over: T) -> T:
    """Return `under` with what `over` sets."""
    changes = {
        f.name: value for f in structs.fields(over) if (value := getattr(over, f.name)) != getattr(type(over)(), f.name)
    }
    return structs.replace(under, **changes)


def split_override(text: str) -> tuple[str, str]:
    """Return pattern and buffer of an override_tensor."""
    pattern, _, buffer = text.rpartition("=")
    return pattern, buffer


def parse_kv(text: str) -> tuple[str, int | float | bool | str]:
    """Return key and value of an override_kv that is well formed."""
    key, kind, value = split_kv(text)
    match kind:
        case "int":
            return key, int(value)
        case "float":
            return key, float(value)
        case "bool":
            return key, value == "true"
        case _:
            return key, value


def split_kv(text: str) -> tuple[str, str, str]:
    """Return key, type and value of an override_kv."""
    key, _, rest = text.partition("=")
    kind, _, value = rest.partition(":")
    return key, kind, value


def attention_rows(options: EngineOptions, kv_tokens: int, heads: int, *, is_cpu: bool) -> tuple[int, bool]:
    """Return how many tokens are computed at once, and whether their attention scores are held for that.

    Flash attention on a CPU works in tiles of 64 rows: fewer cost twice as much a row, and decode is fewer. Without it
    the scores are held, so a batch is computed in pieces that bound them.
    """
    rows = min(options.ubatch or BATCH_TOKENS, options.batch or BATCH_TOKENS)
    is_quantised = options.cache_type_v is not None and CACHE_BYTES[options.cache_type_v] < 2
    if options.flash is not None or not is_cpu or is_quantised:
        return rows, options.flash == "off"
    held = SCORES_MB * 2**20 // (kv_tokens * 4 * max(1, heads))
    if options.ubatch is not None:
        return rows, rows <= held
    return (min(rows, held), True) if held >= LEAST_ROWS else (rows, False)


def faults(options: EngineOptions, parallel: int = 1, devices: int = 1) -> Iterator[tuple[str, str]]:
    """Yield what is wrong beyond single values: the key, and what is allowed there."""
    if options.batch is not None and options.batch < 2 * parallel:
        yield "batch", f"{options.batch} is too small for {parallel} sequences at once; allowed: {2 * parallel} to 4096"
    for index, text in enumerate(options.override_tensor):
        problem = _tensor_fault(text)
        if problem is not None:
            yield f"override_tensor[{index}]", problem
    for index, text in enumerate(options.override_kv):
        problem = _kv_fault(text)
        if problem is not None:
            yield f"override_kv[{index}]", problem
    if options.tensor_split and options.tensor_split != options.tensor_split[:1] * devices:
        equal = ", ".join(["1"] * devices)
        yield (
            "tensor_split",
            f"{options.tensor_split}: the devices of a model hold equal shares so far; allowed: [{equal}]",
        )
    if options.main_gpu is not None and options.main_gpu >= devices:
        yield "main_gpu", f"{options.main_gpu}: min_devices is {devices}; allowed: 0 to {devices - 1}"
    if options.split_mode == "none" and devices > 1:
        yield "split_mode", f"none: min_devices is {devices}; allowed: layer, row, tensor"
    quantised = options.cache_type_v is not None and CACHE_BYTES[options.cache_type_v] < 2
    if quantised and options.flash == "off":
        yield "cache_type_v", f"{options.cache_type_v} needs flash attention; set flash_attn to on or auto"
    most = options.batch or BATCH_TOKENS
    if options.ubatch is not None and options.ubatch > most:
        yield "ubatch", f"{options.ubatch} is more than batch ({most}); allowed: 1 to {most}"
    if options.mlock and options.load_mode == "direct_io":
        yield "mlock", "does not go with load_mode direct_io; allowed: mmap, read"
    if options.rope_scale is not None and options.rope_freq_scale is not None:
        yield "rope_scale", "says the same as rope_freq_scale; leave one of them out"
    if options.chat_template_file is not None and not options.chat_template_file.startswith("/"):
        yield "chat_template_file", f"'{options.chat_template_file}' must be an absolute path on the neuron's host"


def _tensor_fault(text: str) -> str | None:
    pattern, buffer = split_override(text)
    if not pattern or not buffer:
        return f"'{text}' must be PATTERN=BUFFER, for example \\.ffn_.*_exps\\.=CPU"
    foreign = _FOREIGN.search(pattern)
    try:
        re.compile(pattern)
    except re.error as error:
        return f"'{pattern}' is no pattern: {error}"
    return f"'{pattern}': {foreign[0]} is not known to ECMAScript patterns" if foreign else None


def _kv_fault(text: str) -> str | None:
    key, kind, value = split_kv(text)
    if not key or kind not in ("int", "float", "bool", "str"):
        return f"'{text}' must be KEY=TYPE:VALUE with TYPE one of int, float, bool, str"
    if max(len(key.encode()), len(value.encode())) > _KEY_BYTES:
        return f"'{key}': key and value have at most {_KEY_BYTES} bytes"
    if kind == "bool" and value not in ("true", "false"):
        return f"'{text}': allowed for bool: true, false"
    try:
        if kind == "int" and not -(2**63) <= int(value) < 2**63:
            return f"'{text}': the number does not fit 64 bits"
        if kind == "float":
            float(value)
    except ValueError:
        return f"'{text}': '{value}' is no {kind}"
    return None
