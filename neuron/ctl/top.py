"""neuronctl top: devices, models, requests and the last events, live."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common import tables
from common.errors import Code
from common.messages import (
    DeviceState,
    EventsReply,
    LifecycleEvent,
    MemoryReply,
    ModelMemory,
    ReadEvents,
    StatusReply,
)
from neuron.ctl import requests
from neuron.ctl.client import NeuronClient, NoAnswer, RequestRefused
from neuron.ctl.command import LocalCommand, Runnable, print_json
from neuron.ctl.happenings import describe
from neuron.ctl.requests import RequestRow

ROWS = 12
EVENTS = 6
_STYLES = {"ready": "green", "idle": "green", "quarantined": "bold red", "unavailable": "bold red", "stopped": "dim"}


@dataclass
class Scene:
    """What one look has found, and what it takes to compare it with the one before."""

    status: StatusReply
    memory: MemoryReply
    rows: list[RequestRow]
    events: list[LifecycleEvent]
    at: float
    """Monotonic seconds."""
    rates: dict[str, float] = field(default_factory=dict)
    """By device: tokens a second since the look before."""


def look(client: NeuronClient, before: Scene | None) -> Scene:
    """Ask the neuron and its workers. Raises NoAnswer, RequestRefused."""
    status, memory, rows = requests.ask(client)
    events = client.ask(lambda r: ReadEvents(request=r), EventsReply).events[-EVENTS:]
    scene = Scene(status, memory, rows, events, time.monotonic())
    if before is not None and scene.at > before.at:
        counted = {w.device: w.tokens for w in before.memory.workers}
        scene.rates = {
            w.device: max(0, w.tokens - counted[w.device]) / (scene.at - before.at)
            for w in memory.workers
            if w.device in counted
        }
    return scene


def render(scene: Scene) -> RenderableType:
    """Draw it."""
    state = scene.status.state
    running = sum(m.running for m in state.models)
    queued = sum(m.queued for m in state.models)
    rate = f"{sum(scene.rates.values()):.0f}" if scene.rates else "-"
    head = Text(state.name, style="bold")
    head.append(f"  {state.state}, neuron {state.version}{', ' + state.build if state.build else ''}", style="not bold")
    head.append(f"   {scene.status.peers} gateway processes   {running} running   {queued} queued   ", style="not bold")
    head.append(f"{rate} tokens/s")
    parts: list[RenderableType] = [head, Text(), _devices(scene), Text(), _models(scene)]
    if scene.rows:
        parts += [Text(), _requests(scene.rows)]
    if scene.events:
        lines = [
            Text(describe(e, time.time()), style=_level(e), no_wrap=True, overflow="ellipsis") for e in scene.events
        ]
        parts += [Text(), *lines]
    return Group(*parts)


def _level(event: LifecycleEvent) -> str:
    return {"warning": "yellow", "error": "red"}.get(event.level, "dim")


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def _bar(part: float | None, whole: float | None) -> RenderableType:
    if not whole or part is None:
        return Text("-")
    share = min(1.0, part / whole)
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Bar(whole, 0, part, width=16, color=style, bgcolor="bright_black")


def _devices(scene: Scene) -> Table:
    table = _table("DEVICE", "NAME", "STATE", "MEMORY", "", "UTIL", "TEMP", "POWER", "TOKENS/S", "RESTARTS",
                   right=("UTIL", "TEMP", "POWER", "TOKENS/S", "RESTARTS"))  # fmt: skip
    for d in scene.status.state.devices:
        held = _held_mb(d)
        memory = "-" if d.memory_mb is None else f"{held}/{d.memory_mb} MiB"
        phase = f" {d.phase}" if d.state == "ready" and d.phase not in (None, "idle") else ""
        rate = scene.rates.get(d.uuid)
        table.add_row(
            escape(d.uuid), escape(d.name), Text(d.state + phase, style=_STYLES.get(d.state, "yellow")),
            _bar(held, d.memory_mb), memory, _unit(d.utilization, "%", 100), _unit(d.temperature_c, "°C"),
            _unit(d.power_w, "W"), "-" if rate is None else f"{rate:.0f}", str(d.restarts),
        )  # fmt: skip
    return table


def _held_mb(device: DeviceState) -> int:
    return max(device.reserved_mb, device.used_mb or 0)


def _unit(value: float | None, unit: str, factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:.0f} {unit}"


def _models(scene: Scene) -> Table:
    held: dict[str, list[ModelMemory]] = {}
    for worker in scene.memory.workers:
        for model in worker.models:
            held.setdefault(model.model, []).append(model)
    table = _table("MODEL", "STATUS", "WHERE", "SLOTS", "QUEUED", "KV", "", right=("SLOTS", "QUEUED"))
    shown = [m for m in scene.status.state.models if m.replicas or m.running or m.queued or m.status == "failed"]
    for m in shown:
        progress = next((r.progress for r in m.replicas if r.progress is not None), None)
        status = m.status + ("" if progress is None else f" {progress:.0%}") + (", pinned" if m.pinned else "")
        memory = held.get(m.id, [])
        used, total = sum(x.kv_used for x in memory), sum(x.kv_tokens for x in memory)
        slots = (m.parallel or 0) * max(1, len(m.replicas))
        table.add_row(
            escape(m.id), Text(status, style="green" if m.status == "loaded" else "yellow"),
            escape(", ".join(r.device for r in m.replicas)) or "-", f"{m.running}/{slots}", str(m.queued),
            _bar(used, total) if memory else Text("-"), f"{used}/{total}" if memory else "",
        )  # fmt: skip
    if not shown:
        table.add_row("no models are loaded")
    return table


def _requests(rows: Sequence[RequestRow]) -> RenderableType:
    table = _table(*requests.COLUMNS, right=requests.NUMBERS)
    for row in rows[:ROWS]:
        table.add_row(*map(escape, requests.cells(row)))
    left = len(rows) - ROWS
    return Group(table, Text(f"and {left} more", style="dim")) if left > 0 else table


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", "-d", type=float, default=1.0, metavar="SECONDS", help="between looks (default: 1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="look twice, print, and end; also where there is no terminal"
    )


def _run(client: NeuronClient, arguments: argparse.Namespace, as_json: bool) -> None:
    interval_s = min(60.0, max(0.1, arguments.interval))
    out = tables.console()
    scene = look(client, None)
    if as_json or arguments.once or not out.is_terminal:
        time.sleep(interval_s)
        scene = look(client, scene)
        if as_json:
            print_json(
                {"status": scene.status, "memory": scene.memory, "requests": scene.rows, "tokens_per_s": scene.rates}
            )
        else:
            out.print(render(scene))
        return
    with Live(render(scene), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            try:
                scene = look(client, scene)
                live.update(render(scene), refresh=True)
            except (NoAnswer, RequestRefused) as error:
                if isinstance(error, RequestRefused) and error.code is not Code.NEURON_LOST:
                    raise
                live.update(Group(Text(str(error), style="red"), Text(), render(scene)), refresh=True)


TOP: dict[str, Runnable] = {
    "top": LocalCommand("devices, models, requests and speed, live until Ctrl-C", _run, _arguments)
}
