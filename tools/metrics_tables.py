"""Write the tables of docs/metrics.md from the code; `make docs` runs it, and a test holds the page against it."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
sys.path.insert(0, str(ROOT))

from common.gauges import FAMILIES  # noqa: E402
from cortex.metrics.requests import RequestMetrics  # noqa: E402


def tables() -> list[str]:
    """Return the table of the requests and that of the fleet."""
    described = [m.describe()[0] for m in RequestMetrics().all()]
    labels = [m._labelnames for m in RequestMetrics().all()]
    requests = [(d.name, d.type, names, d.documentation) for d, names in zip(described, labels, strict=True)]
    fleet = [(f"helexa_{f.name}", "counter" if f.is_counter else "gauge", f.labels, f.help) for f in FAMILIES]
    return [_table(requests), _table(fleet)]


def _table(rows: list[tuple[str, str, tuple[str, ...], str]]) -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, meaning in rows:
        shown = name + "_total" if kind == "counter" else name
        lines.append(f"| `{shown}` | {kind} | {', '.join(labels)} | {meaning} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with its two tables as the code has them."""
    fresh = iter(tables())
    return re.sub(r"TABLE:\w+\n|\| metric \|(?:.*\n)+?(?=\n|\Z)", lambda _: next(fresh), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
