"""An engine that this program was not written for is refused by name, before anything of it is called."""

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuron import binding

CFG = Path(__file__).parents[2] / "setup.cfg"


class Counter:
    """Stands for a function of the library: says how often it was called, with what."""

    def __init__(self, answers: list[int]) -> None:
        self.answers, self.calls = answers, []  # type: ignore[var-annotated]

    def __call__(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self.answers.pop(0)


def engine(folder: Path, version: str = "0.3.36", **sizes: int) -> Any:
    (folder / "lib").mkdir()
    types = {n: ctypes.c_char * sizes.get(n, size) for n, size in binding.SIZES.items()}
    return SimpleNamespace(__file__=str(folder / "__init__.py"), __version__=version, **types)


def library(*counts: int) -> Any:
    return SimpleNamespace(ggml_backend_reg_count=Counter(list(counts)), ggml_backend_load_all_from_path=Counter([0]))


def test_an_engine_of_the_line_with_its_backends_compiled_in_is_taken(tmp_path: Path) -> None:
    libggml = library(1)
    binding.prepare(engine(tmp_path, "0.3.40"), libggml)
    assert libggml.ggml_backend_load_all_from_path.calls == []


def test_backends_that_are_files_are_loaded_from_the_engines_own_folder(tmp_path: Path) -> None:
    libggml = library(0, 2)
    binding.prepare(engine(tmp_path), libggml)
    assert libggml.ggml_backend_load_all_from_path.calls == [(bytes(tmp_path / "lib"),)]


def test_an_engine_without_a_backend_for_this_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="no backend there can be loaded"):
        binding.prepare(engine(tmp_path), library(0, 0))


@pytest.mark.parametrize("version", ["0.3.35", "0.4.0", "0.4", "1.0.0", "unknown"])
def test_another_line_of_versions_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(ImportError, match=rf"llama-cpp-python {version} is not an engine of this neuron"):
        binding.prepare(engine(tmp_path, version), library())


def test_a_binding_whose_structures_have_grown_is_refused_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"in its Python binding llama_batch has 64 bytes, not 56"):
        binding.prepare(engine(tmp_path, llama_batch=64), library())


def test_a_library_that_is_not_the_one_of_its_binding_is_refused(tmp_path: Path) -> None:
    found = engine(tmp_path)
    (tmp_path / "lib" / binding.RECORD).write_text(json.dumps(binding.SIZES | {"llama_context_params": 168, "new": 4}))
    with pytest.raises(ImportError, match=r"in its library llama_context_params has 168 bytes"):
        binding.prepare(found, library())


def test_what_pip_installs_is_an_engine_of_the_line() -> None:
    [pin] = [line.strip() for line in CFG.read_text().splitlines() if line.strip().startswith("llama-cpp-python==")]
    assert pin.partition("==")[2] == ".".join(map(str, binding.LEAST))
