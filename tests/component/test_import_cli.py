"""`cortex import` as an operator uses it."""

import sys
from pathlib import Path

import pytest

from common.catalogue import load_catalogue
from common.engine_options import EngineOptions
from cortex.__main__ import main

SWAP = """
models:
  a: {cmd: llama-server -m /a.gguf -c 512, aliases: [b, a]}
  b: {cmd: llama-server -m x.gguf --mlock --jinja}
"""


def cortex(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cortex", "import", *arguments])
    return main()


def test_what_is_printed_is_a_models_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(SWAP)
    assert cortex(monkeypatch, "llama-swap", str(tmp_path / "config.yaml")) == 0
    printed = capsys.readouterr()
    (tmp_path / "models.yaml").write_text(printed.out)
    catalogue = load_catalogue(tmp_path / "models.yaml")
    assert [(m.id, m.source, m.context) for m in catalogue.models] == [
        ("a", "file:/a.gguf", 512),
        ("b", "x.gguf", None),
    ]
    assert catalogue.aliases == {}
    assert "not taken over: alias b: is also the id of a model" in printed.err
    assert "not taken over: b: jinja: no key of a profile" in printed.err
    assert catalogue.models[1].engine == EngineOptions(mlock=True)


def test_a_modelfile_s_relative_file_is_found_from_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Tiny").mkdir()
    (tmp_path / "Tiny" / "Modelfile").write_text("FROM ./m.gguf\n")
    assert cortex(monkeypatch, "ollama", str(tmp_path / "Tiny" / "Modelfile"), "-o", str(tmp_path / "out.yaml")) == 0
    [model] = load_catalogue(tmp_path / "out.yaml").models
    assert (model.id, model.source) == ("tiny", f"file:{tmp_path}/Tiny/m.gguf")


def test_nothing_is_overwritten_and_nothing_found_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(SWAP)
    (tmp_path / "out.yaml").write_text("mine")
    assert cortex(monkeypatch, "llama-swap", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out.yaml")) == 1
    assert (tmp_path / "out.yaml").read_text() == "mine"
    assert "exists; choose another name" in capsys.readouterr().err
    (tmp_path / "p.ini").write_text("[m]\nc = 5\n")
    assert cortex(monkeypatch, "llama-server-preset", str(tmp_path / "p.ini")) == 1
    printed = capsys.readouterr()
    assert ("left out" in printed.err, printed.out) == (True, "")
    assert cortex(monkeypatch, "ollama", str(tmp_path / "absent")) == 1
    assert "absent: cannot be read" in capsys.readouterr().err
