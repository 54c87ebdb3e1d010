"""docs/config.md is what the structs say, and every key says what it is for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "tools" / "configuration_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page: ModuleType) -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page.render(), "run `make docs`"


def test_every_key_is_explained(page: ModuleType) -> None:
    assert page.undocumented() == []
