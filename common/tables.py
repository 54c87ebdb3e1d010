"""Tables of devices, models and jobs for terminals, pipes and logs; shared by neuronctl and cortex."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.messages import DeviceState, JobRow, ModelState, WorkerMemory

PIPE_COLUMNS = 10_000
"""Width where there is no terminal: a row stays one line, for grep and awk. Tables take only what they need."""

EXPOSED = "  warning: its bus is plain text; everybody on its network can use and steer it (security: plaintext)"
"""What `neuronctl status` and `cortex status` say below a neuron until its bus is encrypted."""


def console() -> Console:
    """Return the console that tables are printed on."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(width=width, highlight=False)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows of text."""
    table = _table(*columns, right=right)
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def show_devices(devices: Sequence[DeviceState], *, node: str | None = None) -> None:
    """Print devices; those that do not serve with the reason below the table."""
    numbers = ("MEMORY", "RESERVED", "USED", "PID", "RESTARTS")
    table = _table("DEVICE", "NAME", "STATE", *numbers, "BACKEND", right=numbers)
    for d in devices:
        state = d.state if d.state != "ready" or not d.phase or d.phase == "idle" else f"{d.state}, {d.phase}"
        table.add_row(
            d.uuid if node is None else f"{node}/{d.uuid}", d.name, state, _mib(d.memory_mb), _mib(d.reserved_mb),
            _mib(d.used_mb), _or_dash(d.worker_pid), str(d.restarts), d.backend or "-",
        )  # fmt: skip
    out = console()
    out.print(table)
    for d in devices:
        text = d.reason or (f"belongs to the worker of {d.owner} now" if d.owner is not None else None)
        if text is not None:
            out.print(f"  {d.uuid}: {text}", markup=False)


def show_models(models: Sequence[ModelState], *, node: str | None = None) -> None:
    """Print models; reasons below the table."""
    if not models:
        print("no models")
        return
    numbers = ("RUNNING", "QUEUED", "CONTEXT", "KV", "SLOTS", "MEMORY")
    table = _table("MODEL", "STATUS", "WHERE", *numbers, right=numbers)
    for m in models:
        status = m.status if m.feasible or m.status == "failed" else f"{m.status}, does not fit"
        progress = next((r.progress for r in m.replicas if r.status == "loading"), None)
        if progress is not None and m.status == "loading":
            status = f"loading {progress:.0%}"
        if m.fetching is not None:
            status += f", fetching {m.fetching:.0%}"
        elif m.presence in ("downloadable", "missing") and m.status == "unloaded":
            status += f", {m.presence}"
        status += ", draining" if m.draining else ""
        status += ", outdated" if any(r.outdated for r in m.replicas) else ""
        table.add_row(
            m.id if node is None else f"{node}/{m.id}", status + (", pinned" if m.pinned else ""),
            ", ".join("+".join((r.device, *r.also_on)) for r in m.replicas) or "-", str(m.running), str(m.queued),
            _or_dash(m.context), _or_dash(m.kv_tokens), _or_dash(m.parallel), _mib(m.memory_mb),
        )  # fmt: skip
    console().print(table)
    show_reasons(models)


def show_reasons(models: Sequence[ModelState]) -> None:
    """Print a line for each model that something keeps from being loaded, or that had to go."""
    out = console()
    for m in models:
        text = m.reason or (m.unloaded_because if not m.replicas else None)
        if text is None and m.waits_for_room:
            text = "waits until others have made room"
        if text is None:
            text = next((f"makes room for {r.makes_room_for}" for r in m.replicas if r.makes_room_for), None)
        if text is not None:
            out.print(f"  {m.id}: {text}", markup=False)


def show_files(rows: Sequence[tuple[Any, ...]], problems: dict[str, str]) -> None:
    """Print models on disk: id, bytes, files, architecture, quantisation, trained context, path; problems below."""
    if not rows:
        print("no models")
        return
    numbers = ("SIZE", "FILES", "CONTEXT")
    table = _table("MODEL", "SIZE", "FILES", "ARCHITECTURE", "QUANT", "CONTEXT", "WHERE", right=numbers)
    for name, size, files, architecture, quant, context, path in rows:
        cells = (f"{size / 2**20:.0f} MiB", str(files), architecture or "-", quant or "-", _or_dash(context), path)
        table.add_row(name, *cells)
    out = console()
    out.print(table, markup=False)
    for name, problem in problems.items():
        out.print(f"  {name}: {problem}", markup=False)


def show_jobs(jobs: Sequence[JobRow]) -> None:
    """Print jobs."""
    table = _table("JOB", "REQUEST", "MODEL", "STATE", "DEVICE", "AGE", "WHO", right=("AGE",))
    for j in jobs:
        age = f"{j.age_ms / 1000:.1f} s"
        table.add_row(j.job[:12], j.request_id, j.model, j.state, j.device or "-", age, j.principal or "-")
    console().print(table)


def show_memory(workers: Sequence[WorkerMemory]) -> None:
    """Print what workers hold."""
    numbers = ("PROCESS", "WEIGHTS", "KV", "CELLS", "USED", "RUNNING", "IDLE", "IN HOST", "DEVICE FREE")
    table = _table("DEVICE", "MODEL", *numbers, right=numbers)
    for w in workers:
        free = _mib(w.device_free_mb)
        if not w.models:
            table.add_row(w.device, "-", _mib(w.process_mb), "-", "-", "-", "-", "-", "-", "-", free)
        for m in w.models:
            table.add_row(
                w.device, m.model, _mib(w.process_mb), _mib(m.weights_mb), _mib(m.kv_mb), str(m.kv_tokens),
                str(m.kv_used), str(m.sequences), str(m.idle), _mib(m.host_mb), free,
            )  # fmt: skip
    console().print(table)


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value} MiB"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def show_catalogue(entries: Sequence[dict[str, Any]]) -> None:
    """Print rows of /v1/models."""
    if not entries:
        print("no models")
        return
    table = _table("MODEL", "STATUS", "WHERE", "MEMORY", "CONTEXT", "FEASIBLE ON", right=("MEMORY", "CONTEXT"))
    for entry in entries:
        status = entry.get("status", {})
        progress = status.get("progress")
        places = entry.get("locations", [])
        where = ", ".join(f"{p['node']}/{','.join(p.get('devices', []))}" for p in places)
        memory = sum(p.get("memory_mb") or 0 for p in places)
        table.add_row(
            entry["id"], str(status.get("value", "-")) + (f" {progress:.0%}" if progress is not None else ""),
            where or "-", _mib(memory or None), _or_dash(entry.get("meta", {}).get("n_ctx")),
            ", ".join(entry.get("feasible_on", [])) or "-",
        )  # fmt: skip
    console().print(table)
