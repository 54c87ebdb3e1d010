"""What a model runs with here, and why: its profile's word, its file's, or what was chosen. Pure."""

from collections.abc import Iterator
from typing import Any

from msgspec import structs

from common.engine_options import EngineOptions, SamplingDefaults
from common.messages import Setting
from neuron.memory.estimate import MemoryPlan, kv_mb
from neuron.memory.residency import Model, Replica
from neuron.supervisor.host import Host
from neuron.supervisor.inspection import correction_key

PROFILE, FILE, DEFAULT = "profile", "file", "llama.cpp's default"


def settings(host: Host, model: Model) -> list[Setting]:
    """Return everything, those of the model first, then those of each device that holds it."""
    rows = [Setting(name="source", value=model.profile.source, why=PROFILE)]
    if model.path is not None:
        rows.append(Setting(name="file", value=model.path, why="found by its source"))
    for replica in model.replicas.values():
        rows += _sizes(host, model, replica.plan, replica.device)
        rows += _measured(host, model, replica)
        rows += _engine(model, replica.in_force, replica.plan, replica.device)
    if not model.replicas and model.plan is not None:
        rows += _sizes(host, model, model.plan, "")
        rows += _engine(model, {}, model.plan, "")
    rows += _sampling(model)
    return rows


def _sizes(host: Host, model: Model, plan: MemoryPlan, device: str) -> Iterator[Setting]:
    profile, facts = model.profile, model.facts
    trained = facts.context_train if facts is not None else 0
    if profile.context is not None:
        why = PROFILE
    else:
        why = f"trained for {trained}" if plan.context == trained else f"what fits; trained for {trained}"
    yield Setting(name="context", value=str(plan.context), why=why, device=device)
    why = PROFILE if profile.kv_tokens is not None else "context × parallel"
    if profile.kv_tokens is None and plan.kv_tokens < plan.context * plan.parallel:
        why = "what fits; less than context × parallel"
    yield Setting(name="kv_tokens", value=str(plan.kv_tokens), why=why, device=device)
    yield Setting(name="parallel", value=str(plan.parallel), why="profile, or its default", device=device)
    if facts is not None:
        pool = f"{kv_mb(profile, facts, plan.kv_tokens):.0f} MiB"
        full = plan.kv_tokens // max(1, plan.context)
        yield Setting(name="KV", value=pool, why=f"{full} full contexts at once", device=device)
    if plan.gpu_layers is not None and facts is not None:
        why = PROFILE if isinstance(profile.engine.n_gpu_layers, int) else "as many as fit"
        value = f"{plan.gpu_layers}/{len(facts.layer_bytes) + 1}"
        yield Setting(name="n_gpu_layers", value=value, why=why, device=device)
    corrected = host.corrections.get(correction_key(model, device)) if device else None
    why = "from the file's header" + (f", corrected by {corrected:+} MiB" if corrected else "")
    yield Setting(name="memory, estimated", value=f"{plan.estimated_mb} MiB", why=why, device=device)


def _measured(host: Host, model: Model, replica: Replica) -> Iterator[Setting]:
    if replica.status != "loaded":
        return
    floor = model.profile.vram_mb or 0
    why = "vram_mb of the profile" if floor and replica.memory_mb == floor else "as llama.cpp accounts for it"
    yield Setting(name="memory, in use", value=f"{replica.memory_mb} MiB", why=why, device=replica.device)
    if replica.host_mb:
        why = "weights and KV that are not on the device"
        yield Setting(name="host memory", value=f"{replica.host_mb} MiB", why=why, device=replica.device)


def _engine(model: Model, in_force: dict[str, str], plan: MemoryPlan, device: str) -> Iterator[Setting]:
    options, plain = model.profile.engine, EngineOptions()
    given = {f.name for f in structs.fields(options) if getattr(options, f.name) != getattr(plain, f.name)}
    for name, value in in_force.items():
        if name == "n_gpu_layers" and plan.gpu_layers is not None:
            continue
        key = name.partition(" ")[0]
        is_given = key in given or (key == "override_tensor" and bool({"cpu_moe", "n_cpu_moe"} & given))
        is_given |= key == "rope_freq_scale" and "rope_scale" in given
        yield Setting(name=name, value=value, why=PROFILE if is_given else _why_default(key), device=device)
    told = {name.partition(" ")[0] for name in in_force}
    for name in sorted(given - told):
        if name == "n_gpu_layers" and plan.gpu_layers is not None:
            continue
        yield Setting(name=name, value=_text(getattr(options, name)), why=PROFILE, device=device)


def _why_default(name: str) -> str:
    if name in ("batch", "ubatch", "flash_attn", "n_gpu_layers"):
        return "chosen for this model and device"
    if name in ("threads", "threads_batch"):
        return "threads of the device"
    return FILE if name.startswith("rope_") else DEFAULT


def _sampling(model: Model) -> Iterator[Setting]:
    of_file = model.facts.sampling if model.facts is not None else SamplingDefaults()
    for field in structs.fields(SamplingDefaults):
        for source, why in ((model.profile.sampling, PROFILE), (of_file, FILE)):
            value = getattr(source, field.name)
            if value is not None:
                yield Setting(name=field.name, value=_text(value), why=f"{why}, where a request says nothing")
                break


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
