"""docs/metrics.md is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_current() -> None:
    spec = importlib.util.spec_from_file_location("metrics_tables", ROOT / "tools" / "metrics_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert text == module.page(text), "run `make docs`"
    assert all(table in text for table in module.tables())
