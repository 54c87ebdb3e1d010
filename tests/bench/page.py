"""What was measured beside llama.cpp's own programs, as a Markdown table and a plot in docs/benchmarks/."""

import json
from pathlib import Path
from typing import Any

from tests.bench.report import FOLDER

PAGES = Path("docs") / "benchmarks"
NAMES = ("llama_decode", "llama_http", "idle_neighbours", "json_schema", "agents")
TITLES = {
    "llama_decode": "decode, against llama-batched-bench",
    "llama_http": "end to end over HTTP, against llama-server",
    "idle_neighbours": "one stream beside eight idle conversations, against llama-server",
    "json_schema": "eight streams held to a strict JSON schema",
    "agents": "eight conversations of agents, against llama-server",
}


def write() -> Path:
    """Write engine.md and engine.png from the latest figures in build/bench/ and return the page's path."""
    PAGES.mkdir(parents=True, exist_ok=True)
    readings = {n: json.loads((FOLDER / f"{n}.json").read_text()) for n in NAMES if (FOLDER / f"{n}.json").exists()}
    _plot({n: readings[n] for n in ("llama_decode", "llama_http") if n in readings}, PAGES / "engine.png")
    parts = [
        "# The engine beside llama.cpp's own programs",
        "Written by `make bench-engine`: same model file, threads, cells and batch sizes; the two sides alternate; "
        "medians of the pairs.",
        "![ratios by number of sequences](engine.png)",
    ]
    for name, reading in readings.items():
        parts += [f"## {TITLES[name]}", _origin(reading), _table(reading)]
    page = PAGES / "engine.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def _origin(reading: dict[str, Any]) -> str:
    rounds = reading.get("pairs") or reading.get("rounds")
    return f"{reading['date'][:10]}, commit {reading['commit']}, {reading['cores']} cores, {rounds} pairs."


def _table(reading: dict[str, Any]) -> str:
    rows = ["| | | |", "|---|---|---|"]
    for key, value in reading.items():
        if key in ("benchmark", "date", "commit", "cores", "python", "pairs", "rounds"):
            continue
        for point, figure in value.items() if isinstance(value, dict) else (("", value),):
            text = ", ".join(f"{k} {v}" for k, v in figure.items()) if isinstance(figure, dict) else figure
            rows.append(f"| {key} | {point} | {text} |")
    return "\n".join(rows)


def _plot(readings: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw ours over theirs at each number of sequences; 1.0 is level."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, reading in readings.items():
        for quantity in ("tokens_per_s", "first_token_s"):
            if points := reading.get(quantity):
                ratios = [points[p]["ratio"] for p in points]
                axes.plot(list(points), ratios, marker="o", label=f"{name}: {quantity}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="sequences or clients", ylabel="ours / llama.cpp", title="Ratios to llama.cpp's own programs")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
