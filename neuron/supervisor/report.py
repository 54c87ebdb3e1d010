"""The host as others see it: states for the bus, and whether it is healthy. Pure functions over the host."""

from collections.abc import Sequence
from typing import Literal

from common import __version__
from common.messages import DeviceState, Forecast, LifecycleEvent, ModelState, NodeState, ReplicaState
from neuron.memory.estimate import kv_mb
from neuron.memory.residency import Model, Presence, Replica
from neuron.supervisor.host import Host
from neuron.supervisor.states import State


def build(host: Host) -> str | None:
    """Return llama.cpp's build as the workers report it."""
    return next((h.build for h in host.hellos.values()), None)


def device_state(host: Host, uuid: str) -> DeviceState:
    """Return the state of one device."""
    device, owner = host.devices[uuid], host.owner(uuid)
    worker, hello = host.workers.get(owner), host.hellos.get(owner)
    reading = None
    if host.reading is not None:
        reading = next((g for g in host.reading.devices if g.uuid == device.visible), None)
    return DeviceState(
        uuid=uuid,
        name=device.name,
        kind=device.kind,
        state="unavailable" if worker is None or uuid in host.problems else worker.state.value,
        reason=host.problems.get(uuid) if worker is None else host.why_not(uuid),
        memory_mb=device.memory_mb,
        reserved_mb=host.ledger.reserved_mb(uuid) + host.ledger.unreleased_mb(uuid),
        used_mb=reading.memory_used_mb if reading is not None else None,
        utilization=reading.utilization if reading is not None else None,
        temperature_c=reading.temperature_c if reading is not None else None,
        power_w=reading.power_w if reading is not None else None,
        draining=uuid in host.draining_devices,
        worker_pid=worker.pid if worker is not None and worker.is_alive else None,
        paused_for_s=_paused_for(host, uuid),
        restarts=worker.restarts if worker is not None else 0,
        steps=worker.steps if worker is not None else 0,
        xids=host.xids[device.visible] if device.kind == "cuda" else None,
        tokens=worker.tokens if worker is not None else 0,
        prompt_tokens=worker.prompt_tokens if worker is not None else 0,
        cached_tokens=worker.cached_tokens if worker is not None else 0,
        hangs=worker.hangs if worker is not None else 0,
        cycles=worker.cycles if worker is not None else 0,
        phase=worker.phase if worker is not None and worker.is_alive else None,
        backend=hello.backend if hello is not None else None,
        owner=owner if owner != uuid else None,
    )


def _paused_for(host: Host, uuid: str) -> float | None:
    end = host.paused.get(uuid)
    return None if end is None else round(max(0.0, end - host.now) / 60) * 60.0


def _forecasts(model: Model) -> list[Forecast]:
    return [
        Forecast(
            device=device,
            context=plan.context,
            kv_tokens=plan.kv_tokens,
            kv_mb=round(kv_mb(model.profile, model.facts, plan.kv_tokens)),
            memory_mb=plan.memory_mb,
        )
        for device, plan in model.forecast.items()
        if model.facts is not None
    ]


def _presence(model: Model) -> Presence | None:
    return "present" if model.path is not None else model.presence


def _cpu_layers(host: Host, replica: Replica) -> int | None:
    """Return what llama.cpp says of it, `20/33` being the layers on the GPU, of all."""
    told = replica.in_force.get("n_gpu_layers", "").split("/")
    if host.devices[replica.device].kind == "cpu" or len(told) != 2:
        return None
    return int(told[1]) - int(told[0])


def _is_displaced(host: Host, model: Model) -> bool:
    """Say whether a model is without a place here for no fault of its own; a drain or a pause has it wait instead."""
    if model.is_coming() or model.draining or model.fault is not None or host.draining or host.stopping:
        return False
    down = [d for d, parked in host.parked.items() if model.id in parked]
    return any(host.workers[d].state is State.QUARANTINED or host.workers[d].is_stuck for d in down)


def model_state(host: Host, model: Model) -> ModelState:
    """Return the state of one model."""
    plan, reason = model.plan, model.fault or model.shortfall
    replicas = [
        ReplicaState(
            device=r.device,
            status="unloading" if r.leaving else r.status,
            memory_mb=r.memory_mb,
            progress=r.progress,
            running=r.running,
            load_s=r.load_s,
            cpu_layers=_cpu_layers(host, r),
            sequences=r.sequences,
            kv_used=r.kv_used,
            makes_room_for=r.makes_room_for,
            outdated=model.newer is not None,
            also_on=list(r.devices[1:]),
        )
        for r in model.replicas.values()
    ]
    return ModelState(
        id=model.id,
        status=model.status,
        reason=reason,
        replicas=replicas,
        running=host.jobs.running(model.id),
        queued=host.jobs.waiting(model.id),
        context=plan.context if plan is not None else model.profile.context,
        kv_tokens=plan.kv_tokens if plan is not None else model.profile.kv_tokens,
        parallel=plan.parallel if plan is not None else model.profile.parallel,
        forecasts=_forecasts(model),
        memory_mb=plan.memory_mb if plan is not None else None,
        load_s=model.load_s,
        presence=_presence(model),
        fetching=None if model.fetching is None else round(model.fetching, 2),
        feasible=reason is None,
        draining=model.draining,
        capabilities=model.facts.capabilities if model.facts is not None else [],
        profile=(model.given or model.profile).fingerprint,
        pinned=model.pinned,
        residency_priority=model.profile.residency_priority,
        displaced=_is_displaced(host, model),
        waits_for_room=any(w.model == model.id for w in host.wants.values()),
        service_ms=host.pace.service_ms(model.id),
        unloaded_because=model.unloaded_because,
        prefixes=[link for r in model.replicas.values() if r.status == "loaded" for link in r.prefixes.links()],
    )


def node_state(host: Host, seq: int) -> NodeState:
    """Return the full state."""
    return NodeState(
        incarnation=host.incarnation,
        seq=seq,
        full=True,
        name=host.settings.name,
        version=__version__,
        state="draining" if host.draining or host.stopping else "serving",
        build=build(host),
        exposed=host.settings.is_exposed,
        devices=[device_state(host, d) for d in host.devices],
        models=[model_state(host, m) for m in host.models.values()],
        aliases=host.aliases,
        evictions=dict(host.evictions),
        disks=host.disks,
        poisoned=host.inquest.convicted,
    )


def status_line(host: Host) -> str:
    """Return one line for the service manager: what serves, what is loading, and what keeps a device from serving."""
    reasons = {d: host.why_not(d) for d in host.devices}
    serving = [
        d for d in host.workers if host.worker(d).state in (State.IDLE, State.READY) and d not in host.draining_devices
    ]
    line = f"{len(serving)} of {len(reasons)} devices serve"
    loaded = sum(m.status == "loaded" for m in host.models.values())
    loading = [m.id for m in host.models.values() if m.status == "loading"]
    line += f"; {loaded} models loaded" + (f"; loading {', '.join(loading)}" if loading else "")
    line += "; the bus is plain text, for a trusted network only" if host.settings.is_exposed else ""
    return line + "".join(
        f"; {host.devices[d].name}: {reason}" for d, reason in reasons.items() if reason and d not in serving
    )


def change(before: NodeState, after: NodeState, events: Sequence[LifecycleEvent] = ()) -> NodeState | None:
    """Return the partial state that leads from one full state to the next, None if nothing has changed or happened."""
    devices = {d.uuid: d for d in before.devices}
    models = {m.id: m for m in before.models}
    changed_devices = [d for d in after.devices if devices.get(d.uuid) != d]
    changed_models = [m for m in after.models if models.get(m.id) != m]
    gone = [m for m in models if m not in {m.id for m in after.models}]
    head_changed = any(
        getattr(before, n) != getattr(after, n) for n in ("state", "build", "aliases", "disks", "poisoned")
    )
    if not (changed_devices or changed_models or gone or head_changed or events):
        return None
    return NodeState(
        incarnation=after.incarnation,
        seq=after.seq,
        full=False,
        name=after.name,
        version=after.version,
        state=after.state,
        build=after.build,
        exposed=after.exposed,
        devices=changed_devices,
        models=changed_models,
        gone=gone,
        aliases=after.aliases,
        evictions=after.evictions,
        disks=after.disks,
        events=list(events),
        poisoned=after.poisoned,
    )


def _is_here(model: Model) -> bool:
    """Say whether it is this host's to serve: what a gateway describes need not be on every host."""
    return model.is_own or model.is_found or model.path is not None


def health(host: Host) -> tuple[Literal["ok", "impaired", "degraded"], list[str]]:
    """Return ok; impaired: something does not serve; degraded: nothing does. With the reasons."""
    reasons = [f"{d}: {host.problems.get(d) or host.why_not(d)}" for d in host.devices if not host.can_serve(d)]
    serving = [d for d in host.devices if host.can_serve(d)]
    if host.prep.state is not State.READY:
        reasons.append(f"the prep process is {host.prep.state}")
    reasons += [f"model {m.id}: {m.fault}" for m in host.models.values() if m.fault and _is_here(m)]
    if host.driver_problem is not None:
        reasons.append(host.driver_problem)
    if host.draining:
        reasons.append("the node is draining")
    if not serving or host.draining:
        return "degraded", reasons
    return ("impaired" if reasons else "ok"), reasons
