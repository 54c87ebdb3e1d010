"""The fleet as /v1/models and /health show it. Pure functions over the nodes; what is not known is left out."""

from collections.abc import Iterable
from typing import Any

from common.catalogue import Alias, Catalogue, Profile
from common.errors import Code, RequestError
from common.messages import ModelState
from cortex.fleet import placement
from cortex.fleet.aliases import choose, find, is_pattern
from cortex.fleet.contract import Health
from cortex.fleet.view import LinkState, Node

OWNER = "helexa"
NO_NEURON_RETRY_S = 2.0
_PRECEDENCE = ("loaded", "loading", "recovering", "unloading", "unloaded", "failed")
"""The model's status is the first of these that it has anywhere."""

_RESIDENT = frozenset({"loaded", "loading", "recovering"})
_OK_DEVICE_STATES = frozenset({"ready", "starting", "stopped", "draining"})


def list_models(nodes: Iterable[Node], catalogue: Catalogue, created: int) -> list[dict[str, Any]]:
    """Return an entry for every model that anybody knows, and one for every alias. `created`: seconds since 1970."""
    nodes = list(nodes)
    profiles = {p.id: p for p in catalogue.models}
    ids = sorted(profiles.keys() | {m for n in nodes for m in n.models})
    aliases = collect_aliases(nodes, catalogue)
    entries = []
    for model in ids:
        entry = _entry(model, nodes, profiles.get(model), created)
        names = sorted(a for a, target in aliases.items() if _target(target) == model)
        if names:
            entry["aliases"] = names
        entries.append(entry)
        single = [name for name in names if not is_pattern(name)]
        entries += [{**entry, "id": name, "aliases": [], "alias_of": model} for name in single]
    return entries


def resolve(name: str, nodes: Iterable[Node], catalogue: Catalogue) -> tuple[str, Alias | None]:
    """Return the id behind a model's name or alias, and the alias. Raises RequestError where nobody knows it."""
    nodes = list(nodes)
    ids = {p.id for p in catalogue.models}.union(*(n.models for n in nodes))
    target = find(name, ids, collect_aliases(nodes, catalogue))
    if target is not None:
        model = choose(target, {m for n in nodes if n.is_here for m, s in n.models.items() if s.status in _RESIDENT})
        return model, target if isinstance(target, Alias) else None
    if nodes and not any(n.is_known for n in nodes):
        raise RequestError(
            Code.NO_HEALTHY_NEURON, "no neuron has answered yet", retriable=True, retry_after_s=NO_NEURON_RETRY_S
        )
    raise RequestError(
        Code.MODEL_NOT_FOUND, f"the model '{name}' does not exist; GET /v1/models lists those that do", param="model"
    )


def collect_aliases(nodes: Iterable[Node], catalogue: Catalogue) -> dict[str, str | Alias]:
    """Map aliases to models; the gateway's catalogue wins over the neurons' own."""
    aliases: dict[str, str | Alias] = {a: target for node in nodes for a, target in node.aliases.items()}
    return {**aliases, **catalogue.aliases}


def _target(alias: str | Alias) -> str:
    return alias if isinstance(alias, str) else alias.model


def _entry(model: str, nodes: list[Node], profile: Profile | None, created: int) -> dict[str, Any]:
    known = [(n, n.models[model]) for n in nodes if model in n.models]
    here = [(n, m) for n, m in known if n.is_here]
    status = _status([m for _, m in here])
    entry: dict[str, Any] = {"id": model, "object": "model", "created": created, "owned_by": OWNER, "status": status}
    sizes = [m for _, m in known if m.status == "loaded"] or [m for _, m in known]
    contexts = [m.context for m in sizes if m.context is not None]
    context = min(contexts, default=profile.context if profile is not None else None)
    slots = [m.parallel for m in sizes if m.parallel is not None]
    meta = {"n_ctx": context, "n_slots": min(slots, default=None)}
    if any(value is not None for value in meta.values()):
        entry["meta"] = {name: value for name, value in meta.items() if value is not None}
    entry["locations"] = [_location(n, m) for n, m in known if m.replicas]
    entry["feasible_on"] = [n.name for n in nodes if _is_feasible(n, model, profile)]
    capabilities = sorted({c for _, m in known for c in m.capabilities} or (profile.capabilities if profile else ()))
    if capabilities:
        entry["capabilities"] = capabilities
        entry["architecture"] = _modalities(capabilities)
    if any(m.pinned for _, m in here):
        entry["pinned"] = True
    return entry


def _modalities(capabilities: list[str]) -> dict[str, list[str]]:
    """Return what goes in and what comes out, under llama-server's names."""
    is_embedding = "embeddings" in capabilities
    return {
        "input_modalities": ["text", "image"] if "vision" in capabilities else ["text"],
        "output_modalities": ["embeddings" if is_embedding else "scores" if "rerank" in capabilities else "text"],
    }


def _is_feasible(node: Node, model: str, profile: Profile | None) -> bool:
    if not node.is_here:
        return False
    state = node.models.get(model)
    if state is None:
        return profile is not None and placement.is_feasible(node, profile)
    would_fetch = profile is not None and profile.download == "on_demand" and state.presence == "downloadable"
    if state.presence in ("downloadable", "missing") and not would_fetch:
        return False
    if state.memory_mb is None and profile is not None and not placement.is_feasible(node, profile):
        return False
    return state.feasible


def _status(states: list[ModelState]) -> dict[str, Any]:
    value = next((v for v in _PRECEDENCE if any(m.status == v for m in states)), "unloaded")
    status: dict[str, Any] = {"value": "unloaded" if value == "unloading" else value}
    if value == "failed":
        status["failed"] = True
        status["reason"] = next(m.reason for m in states if m.status == "failed")
    fetching = [m.fetching for m in states if m.fetching is not None]
    if value == "unloaded" and fetching:
        status["fetching"] = max(fetching)
    if value == "loading":
        progress = [r.progress for m in states for r in m.replicas if r.progress is not None]
        if progress:
            status["progress"] = max(progress)
    return status


def _location(node: Node, model: ModelState) -> dict[str, Any]:
    location: dict[str, Any] = {
        "node": node.name,
        "devices": [d for r in model.replicas for d in (r.device, *r.also_on)],
        "status": model.status if node.is_here else "unreachable",
    }
    held = [r.memory_mb for r in model.replicas if r.memory_mb is not None]
    if held:
        location["memory_mb"] = sum(held)
    return location


def judge_health(nodes: Iterable[Node]) -> Health:
    """Return ok; impaired: something does not serve; degraded: nothing does. With the reasons."""
    nodes = list(nodes)
    reasons = []
    for node in nodes:
        if node.link is LinkState.REFUSED:
            reasons.append(f"neuron {node.name} refuses this gateway: {node.error}")
        elif node.link is not LinkState.UP:
            reasons.append(f"neuron {node.name} at {node.endpoint} is {node.link.value}")
        elif node.is_draining:
            reasons.append(f"neuron {node.name} is draining")
        else:
            reasons += [
                f"neuron {node.name}, device {d.name} ({d.uuid}): {d.reason or d.state}"
                for d in node.devices.values()
                if d.state not in _OK_DEVICE_STATES
            ]
    if not nodes:
        reasons.append("no neuron is configured")
    if not any(_serves(n) for n in nodes):
        return Health("degraded", reasons or ["no device serves"])
    return Health("impaired" if reasons else "ok", reasons)


def _serves(node: Node) -> bool:
    if node.link is not LinkState.UP or node.is_draining:
        return False
    return any(d.state in _OK_DEVICE_STATES for d in node.devices.values())
