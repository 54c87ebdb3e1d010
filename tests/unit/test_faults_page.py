"""docs/faults.md names the tests that keep each promise; a name that is no test would be a promise nobody keeps."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(test_\w+)\.(\w+)`")


def existing() -> set[tuple[str, str]]:
    """Return (module, name without `test_`) of every test."""
    return {
        (path.stem, node.name.removeprefix("test_"))
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_is_named_exists() -> None:
    named = set(NAMED.findall((ROOT / "docs" / "faults.md").read_text()))
    assert len(named) > 100
    assert named - existing() == set()
