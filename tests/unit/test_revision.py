"""Every program says which build it is."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common import __version__, revision
from cortex.__main__ import build_parser as cortex
from cortex.acp.__main__ import build_parser as helexa_acp
from neuron.__main__ import build_parser as neuron
from neuron.ctl.__main__ import build_parser as neuronctl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("build_parser", [cortex, helexa_acp, neuron, neuronctl])
def test_the_version_of_a_program_names_the_revision_of_its_source(
    build_parser: Callable[[], argparse.ArgumentParser],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(revision, "_ARCHIVED", "abc1234")
    parser = build_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{parser.prog} {__version__} (abc1234)\n"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_what_is_built_from_a_checkout_knows_its_revision_without_git(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'_ARCHIVED = "{head.stdout.strip()}"' in (tmp_path / "common/revision.py").read_text()
