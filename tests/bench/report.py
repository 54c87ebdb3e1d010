"""What every benchmark does with its figures: print a table, keep them as JSON with date and commit."""

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("build") / "bench"


def write(name: str, figures: dict[str, Any]) -> Path:
    """Write figures to build/bench/NAME.json and return the path."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    head = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({**head, **figures}, indent=2) + "\n")
    return path


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile of at least one value, by rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, p99 and extremes."""
    return {
        "p50": statistics.median(values),
        "p99": quantile(values, 0.99),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }
