"""neuronctl's questions about the neuron itself: status, devices, workers, health, memory, version, ping."""

import argparse
import time

from common import tables
from common.messages import (
    Discover,
    DiscoverReply,
    Health,
    HealthReply,
    Memory,
    MemoryReply,
    Status,
    StatusReply,
    Version,
    VersionReply,
)
from common.revision import describe
from neuron.ctl.client import NeuronClient
from neuron.ctl.command import Command, LocalCommand, Runnable, print_json


def _show_status(reply: StatusReply) -> None:
    state = reply.state
    build = f", {state.build}" if state.build else ""
    print(f"{state.name}: {state.state}, neuron {state.version}{build}, {reply.peers} gateway processes connected")
    if state.exposed:
        print(tables.EXPOSED)
    if reply.undecodable:
        print(f"{reply.undecodable} frames were no messages; see the log")
    tables.show_devices(state.devices)
    tables.show_models(state.models)
    if reply.jobs:
        tables.show_jobs(reply.jobs)
    else:
        print("no jobs")


def _show_health(reply: HealthReply) -> None:
    print(reply.status)
    for reason in reply.reasons:
        print(f"  {reason}")


def _show_version(reply: VersionReply) -> None:
    print(f"neuron {reply.version}, protocol {'.'.join(map(str, reply.protocol))}, {reply.build or 'no worker yet'}")
    print(describe("neuronctl"))


def _show_workers(reply: StatusReply) -> None:
    rows = []
    for d in reply.state.devices:
        pid = "-" if d.worker_pid is None else str(d.worker_pid)
        running = sum(r.running for m in reply.state.models for r in m.replicas if r.device == d.uuid)
        held = [m.id for m in reply.state.models if any(r.device == d.uuid for r in m.replicas)]
        rows.append((d.uuid, pid, d.state, d.phase or "-", str(d.restarts), str(d.steps), str(d.cycles), str(running),
                     d.backend or "-", ", ".join(held) or "-"))  # fmt: skip
    numbers = ("PID", "RESTARTS", "STEPS", "LOADS", "RUNNING")
    tables.show(("DEVICE", "PID", "STATE", "PHASE", "RESTARTS", "STEPS", "LOADS", "RUNNING", "BACKEND", "MODELS"), rows,
                right=numbers)  # fmt: skip
    for d in reply.state.devices:
        if d.reason:
            print(f"  {d.uuid}: {d.reason}")


def _ping_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", "-c", type=int, default=4, metavar="N", help="how often (default: 4)")


def _ping(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    """Measure the way to the neuron's main loop and back."""
    times_ms = []
    for _ in range(max(1, arguments.count) + 1):
        began = time.perf_counter()
        reply = client.ask(lambda r: Version(request=r), VersionReply)
        times_ms.append((time.perf_counter() - began) * 1000)
    times_ms = times_ms[1:]  # the first one connected
    low, mean, high = min(times_ms), sum(times_ms) / len(times_ms), max(times_ms)
    if as_json:
        print_json({"neuron": reply.version, "count": len(times_ms), "min_ms": low, "mean_ms": mean, "max_ms": high})
    else:
        print(
            f"neuron {reply.version} answers in {low:.2f} / {mean:.2f} / {high:.2f} ms "
            f"(min / mean / max of {len(times_ms)})"
        )


LOOKS: dict[str, Runnable] = {
    "status": Command("devices, models and jobs", lambda r, a: Status(request=r), StatusReply, _show_status),
    "devices": Command(
        "devices, also those that are not served",
        lambda r, a: Discover(request=r),
        DiscoverReply,
        lambda reply: tables.show_devices(reply.devices),
    ),
    "health": Command("whether it serves, and if not, why", lambda r, a: Health(request=r), HealthReply, _show_health),
    "memory": Command(
        "what the workers themselves hold",
        lambda r, a: Memory(request=r),
        MemoryReply,
        lambda reply: tables.show_memory(reply.workers),
    ),
    "version": Command("versions", lambda r, a: Version(request=r), VersionReply, _show_version),
    "workers": Command(
        "worker processes: pid, phase, restarts, steps, models",
        lambda r, a: Status(request=r),
        StatusReply,
        _show_workers,
    ),
    "ping": LocalCommand("whether the neuron answers, and how fast", _ping, _ping_arguments),
}
