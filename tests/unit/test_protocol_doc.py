"""docs/protocol.md names exactly the messages of each direction."""

import re
import typing
from pathlib import Path

import pytest

from common import messages

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"
SECTIONS = {
    "gateway, neuronctl → supervisor": messages.ToNeuron,
    "supervisor → gateway, neuronctl": messages.FromNeuron,
    "supervisor → worker": messages.ToWorker,
    "worker → supervisor": messages.FromWorker,
    "supervisor → prep": messages.ToPrep,
    "prep → supervisor": messages.FromPrep,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_names_exactly_its_messages(title: str) -> None:
    text = DOC.read_text(encoding="utf-8").split(f"### {title}\n")[1].split("\n### ")[0]
    named = {m for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for m in re.findall(r"`([a-z-]+)`", row)}
    kinds = {m.__struct_config__.tag for m in typing.get_args(SECTIONS[title])}
    assert named == kinds
