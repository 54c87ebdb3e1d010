"""A source is found where it says, or the error says where it was looked for."""

from pathlib import Path

import pytest

from common.errors import Code, RequestError
from neuron.sources import resolve_source


def test_a_name_is_looked_for_below_every_model_dir(tmp_path: Path) -> None:
    (tmp_path / "two" / "deep").mkdir(parents=True)
    (tmp_path / "two" / "deep" / "m.gguf").touch()
    dirs = [tmp_path / "one", tmp_path / "two"]
    assert resolve_source("deep/m.gguf", dirs, tmp_path) == tmp_path / "two" / "deep" / "m.gguf"


def test_an_absolute_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert resolve_source(f"file:{tmp_path}/m.gguf", [], tmp_path) == tmp_path / "m.gguf"


def test_a_file_of_an_installed_package_is_found_without_importing_it() -> None:
    assert resolve_source("package:common/errors.py", [], Path("/")).name == "errors.py"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file:relative.gguf", "must be absolute"),
        ("file:/nowhere/m.gguf", "no such file"),
        ("absent.gguf", "no such file below"),
        ("../escape.gguf", "must not leave"),
        ("package:no_such_package_x/m.gguf", "pip install no-such-package-x"),
        ("package:common/../secret", "must not leave"),
        ("package:common/absent.gguf", "no such file"),
        ("package:not-an-identifier/m", "is not installed"),
        ("hf:org/repo/m.gguf", "run: neuronctl pull hf:org/repo/m.gguf"),
        ("hf:org", "write hf:ORG/REPO"),
    ],
)
def test_what_is_not_there_is_refused_by_name(tmp_path: Path, source: str, expected: str) -> None:
    with pytest.raises(RequestError, match=expected) as caught:
        resolve_source(source, [tmp_path], tmp_path)
    assert caught.value.code is Code.MODEL_LOADING_FAILED
    assert source in caught.value.message
