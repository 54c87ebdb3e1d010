"""The cookbook's examples are what the programs read, and its words are the ones they say."""

import re
from pathlib import Path

import pytest

from common.catalogue import load_catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_recipes_for_every_kind_of_host_and_model() -> None:
    assert len(EXAMPLES) >= 6
    for heading in ("12 GB", "24 GB", "Two cards with 32 GB", "mixture of experts", "128k", "Vision", "Embeddings"):
        assert heading in PAGE


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_read(tmp_path: Path, example: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(example)
    catalogue = load_catalogue(path)
    assert catalogue.models
    assert all(p.source.startswith("hf:") for p in catalogue.models)
