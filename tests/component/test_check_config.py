"""`cortex check-config`: the files, and what the fleet that answers would do with them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.messages import Forecast
from cortex.__main__ import main
from cortex.fleet import fleet as fleet_module
from tests.support.fake_neuron import FakeNeuron, model_state
from tests.support.harness import free_port

MODELS = """
models:
  - {id: here/loaded, source: "file:/a.gguf", vram_mb: 100}
  - {id: cold/one, source: "file:/b.gguf", vram_mb: 400, pinned_on: [benjy]}
  - {id: too/large, source: "file:/c.gguf", vram_mb: 99999}
aliases: {default: cold/one}
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command on these neurons; return what it prints. Its exit status is to be 0."""
    monkeypatch.setattr(fleet_module, "SETTLE_S", 0.3)

    def run(*arguments: str, neurons: dict[str, str], status: int = 0) -> str:
        rows = "".join(f"  - {{name: {n}, endpoint: '{e}'}}\n" for n, e in neurons.items())
        (tmp_path / "cortex.yaml").write_text(f"neurons:\n{rows}")
        (tmp_path / "models.yaml").write_text(MODELS)
        command = ["cortex", "check-config", "--config", str(tmp_path / "cortex.yaml"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        assert main() == status
        told = capsys.readouterr()
        return told.out + told.err

    return run


def test_it_says_where_each_model_would_go_and_why(check: Callable[..., str]) -> None:
    with FakeNeuron(model_state("here/loaded"), name="beast") as beast, FakeNeuron(name="benjy") as benjy:
        lost = f"127.0.0.1:{free_port()}"
        out = check(neurons={"beast": beast.endpoint, "benjy": benjy.endpoint, "lost": lost})
    assert "valid, 3 neurons" in out
    assert "valid, 3 models" in out
    assert f"neuron lost at {lost}: does not answer" in out
    rows = {line.split()[0]: line for line in out.splitlines() if "/" in line.split(" ")[0]}
    assert "beast" in rows["here/loaded"]
    assert "is there already" in rows["here/loaded"]
    assert "benjy" in rows["cold/one"]
    assert "named in pinned_on; fits in free memory" in rows["cold/one"]
    assert "no device is large enough" in rows["too/large"]


def test_one_models_ranking_is_explained(check: Callable[..., str]) -> None:
    with FakeNeuron(model_state("here/loaded"), name="beast") as beast, FakeNeuron(name="benjy") as benjy:
        fleet = {"beast": beast.endpoint, "benjy": benjy.endpoint}
        cold = check("--explain", "default", neurons=fleet)
        warm = check("--explain", "here/loaded", neurons=fleet)
        unknown = check("--explain", "nobody/knows", neurons=fleet, status=1)
    assert "default is an alias of cold/one" in cold
    first, second = (line for line in cold.splitlines() if line.startswith(("1", "2")))
    assert "benjy" in first
    assert "named in pinned_on" in first
    assert "400 MiB" in first
    assert "beast" in second
    assert "requests go to the neurons that have it" in warm
    assert "does not exist" in unknown


def test_a_file_that_cannot_be_used_is_told_with_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.yaml").write_text("gateway: {lissten: x}")
    monkeypatch.setattr(sys, "argv", ["cortex", "check-config", "--config", str(tmp_path / "cortex.yaml")])
    assert main() == 1
    assert "gateway.lissten: unknown key" in capsys.readouterr().err


def test_it_shows_the_kv_size_and_the_full_contexts_of_each_device(check: Callable[..., str]) -> None:
    sizes = [
        Forecast(device="GPU-1", context=8192, kv_tokens=65536, kv_mb=1440, memory_mb=1700),
        Forecast(device="GPU-2", context=4096, kv_tokens=4096, kv_mb=90, memory_mb=250),
    ]
    with FakeNeuron(model_state("here/loaded", forecasts=sizes), name="beast") as beast:
        out = check(neurons={"beast": beast.endpoint})
    rows = {line.split()[1]: line.split()[2:] for line in out.splitlines() if "beast/GPU" in line}
    assert rows["beast/GPU-1"] == ["8192", "1440", "MiB", "8", "1700", "MiB"]
    assert rows["beast/GPU-2"] == ["4096", "90", "MiB", "1", "250", "MiB"]
