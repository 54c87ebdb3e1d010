"""What llama.cpp would take for a model, asked of llama.cpp itself without a byte of weights. Imports llama_cpp."""

import os
import re
from collections.abc import Sequence
from typing import Any

import llama_cpp
from msgspec import structs

from common.engine_options import CACHE_TYPES, EngineOptions, parse_kv
from common.messages import ModelFacts
from neuron.prep import llama_said
from neuron.prep.vocabulary import UnusableFile

CELLS = 65536
"""Of the context that is simulated: the more, the more exactly a cell's share is told. No memory is taken for them."""
_KV = re.compile(r"size = +[\d.]+ MiB \( *(\d+) cells.*?K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB")
_STATES = re.compile(r"size = +([\d.]+) MiB \( *(\d+) cells.*?R \(\w+\)")
_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUT, _OUTPUT = "token_embd.weight", "output.weight"
_MIB = 2**20


def kv_overrides(texts: Sequence[str]) -> Any:
    """Return an array of llama_model_kv_override, ended by an empty key."""
    array = (llama_cpp.llama_model_kv_override * (len(texts) + 1))()
    for entry, text in zip(array, texts, strict=False):
        key, value = parse_kv(text)
        union: Any = entry.value
        entry.key = key.encode()
        match value:
            case bool():
                entry.tag, union.val_bool = 2, value
            case int():
                entry.tag, union.val_i64 = 0, value
            case float():
                entry.tag, union.val_f64 = 1, value
            case str():
                entry.tag, union.val_str = 3, value.encode()
    return array


def measure(path: str, facts: ModelFacts, sizes: dict[str, int], options: EngineOptions) -> ModelFacts:
    """Return the facts with the sizes of layers, KV and states. Raises UnusableFile in llama.cpp's words.

    `sizes`: bytes of the tensors, by name. The model is loaded as for serving, but for its data: a file that this
    llama.cpp cannot serve is found out before anything makes room for it.
    """
    facts = _weigh(facts, sizes, options)
    params = llama_cpp.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = False
    params.n_gpu_layers = 0
    overrides = kv_overrides(options.override_kv)
    if options.override_kv:
        params.kv_overrides = overrides
    llama_said.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise UnusableFile(f"llama.cpp refuses it: {llama_said.complaint()}")
    try:
        problem = llama_said.ill_typed()
        if problem is not None:
            raise UnusableFile(problem)
        trained = int(llama_cpp.llama_model_n_ctx_train(model))  # as an override_kv may have changed it
        facts = structs.replace(facts, heads=int(llama_cpp.llama_model_n_head(model)), context_train=trained)
        if _gives_vectors(facts):
            return facts
        _check_cache(model, options)
        return _measure_memory(model, facts)
    finally:
        llama_cpp.llama_model_free(model)


def _gives_vectors(facts: ModelFacts) -> bool:
    return not {"embeddings", "rerank"}.isdisjoint(facts.capabilities)


def _check_cache(model: Any, options: EngineOptions) -> None:
    """Have llama.cpp say whether the heads go with the types of the cache, before anything makes room for the model."""
    if options.cache_type_k is None and options.cache_type_v is None:
        return
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 256, 32, 32, 1
    params.n_outputs_max = 1
    params.kv_unified = params.no_perf = True
    params.type_k = CACHE_TYPES[options.cache_type_k or "f16"]
    params.type_v = CACHE_TYPES[options.cache_type_v or "f16"]
    llama_said.clear()
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise UnusableFile(f"llama.cpp makes no context of it: {llama_said.complaint()}")
    llama_cpp.llama_free(context)


def _measure_memory(model: Any, facts: ModelFacts) -> ModelFacts:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CELLS, 32, 32, 1
    params.n_outputs_max = 1
    params.kv_unified = params.swa_full = params.no_perf = True
    llama_said.clear()
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise UnusableFile(f"llama.cpp makes no context of it: {llama_said.complaint()}")
    llama_cpp.llama_free(context)
    said = llama_said.everything()
    caches = [(float(k) * _MIB / int(cells), float(v) * _MIB / int(cells)) for cells, k, v in _KV.findall(said)]
    states = [float(size) * _MIB / int(cells) for size, cells in _STATES.findall(said)]
    if not caches and not states:
        return facts  # it has no memory, or says so in other words than these: the header's numbers stand
    window = int(llama_cpp.llama_model_n_swa(model))
    whole = caches[0] if caches else (0.0, 0.0)
    windowed = caches[1] if len(caches) > 1 else (0.0, 0.0)
    keys, total = whole[0] + windowed[0], sum(whole) + sum(windowed)
    return structs.replace(
        facts,
        kv_bytes_per_token=round(sum(whole)),
        window_bytes_per_token=round(sum(windowed)),
        window=window,
        key_share=keys / total if total else 0.5,
        state_bytes=round(sum(states)),
    )


def _weigh(facts: ModelFacts, sizes: dict[str, int], options: EngineOptions) -> ModelFacts:
    """Tell what each layer weighs, and what stays in host memory on a device that has its own."""
    patterns = [re.compile(p) for p in options.host_patterns(facts.layers)]
    layers, fixed, output = [0] * facts.layers, 0, 0
    for name, size in sizes.items():
        match = _LAYER.match(name)
        if not name:
            continue
        if name == _INPUT or any(p.search(name) for p in patterns):
            fixed += size
        elif match is not None and int(match[1]) < facts.layers:
            layers[int(match[1])] += size
        else:
            output += size
    if _OUTPUT not in sizes:
        output += sizes.get(_INPUT, 0)  # the input's matrix serves as the output's too: a device has one of its own
    return structs.replace(facts, layer_bytes=layers, host_bytes=fixed, output_bytes=output)
