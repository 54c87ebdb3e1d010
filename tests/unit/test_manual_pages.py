"""Every command and option has its place in the manual pages."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "manual_pages.py"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual_pages", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
            for sub in action.choices.values():
                found |= options(sub)
    return found


@pytest.mark.parametrize("program", ["cortex", "helexa-acp", "neuron", "neuronctl"])
def test_a_page_names_every_command_and_option(pages: ModuleType, program: str) -> None:
    text = pages.render(program)
    assert text.startswith(f".TH {program.upper()} 1 ")
    shown = text.replace("\\-", "-")
    assert [o for o in sorted(options(pages.PARSERS[program]())) if o not in shown] == []


def test_nothing_that_a_program_says_becomes_a_request_of_roff(pages: ModuleType) -> None:
    assert pages._text(".SH \\fB-x") == "\\&.SH \\efB\\-x"
    assert pages._text("'quoted'") == "\\&'quoted'"
