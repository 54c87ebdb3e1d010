"""The base install is the command lines: pure Python, without llama.cpp, gunicorn or anything only the daemons need."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = ("falcon", "gunicorn", "uvloop", "llama_cpp", "jinja2", "pynvml", "numpy", "huggingface_hub")

BLOCKER = f"""
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run_blocked(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", BLOCKER, *arguments], capture_output=True, text=True, timeout=30, check=False, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "NEURON_"))},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("cortex", "--help"),
        ("cortex", "--version"),
        ("neuron.ctl", "--help"),
        ("neuron", "--help"),
        ("cortex.acp", "--help"),
    ],
)
def test_the_command_lines_start_without_the_extras(arguments: tuple[str, ...]) -> None:
    done = run_blocked(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_lines_work_without_the_extras() -> None:
    done = run_blocked("neuron.ctl", "--endpoint", "127.0.0.1:1", "--timeout", "0.2", "status")
    assert done.returncode == 3
    assert "no neuron answers" in done.stderr
    done = run_blocked("neuron.ctl", "pull", "hf:org/repo")
    assert (done.returncode, "pip install 'helexa[neuron]'" in done.stderr) == (2, True)
    done = run_blocked("neuron.ctl", "models", "ls", "--disk", "--cache", "/nowhere")
    assert (done.returncode, done.stdout) == (0, "no models\n")
    done = run_blocked("cortex", "models", "--url", "http://127.0.0.1:1")
    assert done.returncode == 3


def test_a_daemon_without_its_extra_names_it(tmp_path: Path) -> None:
    (tmp_path / "cortex.yaml").write_text("{}")
    (tmp_path / "neuron.yaml").write_text("devices: [{kind: cpu, memory_mb: 100}]")
    done = run_blocked("cortex", "serve", "--config", str(tmp_path / "cortex.yaml"))
    assert done.returncode == 1
    assert "pip install 'helexa[gateway]'" in done.stderr
    done = run_blocked("neuron", "--config", str(tmp_path / "neuron.yaml"))
    assert done.returncode == 1
    assert "pip install 'helexa[neuron]'" in done.stderr


def test_the_base_requirements_name_none_of_the_extras() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    base = config["options"]["install_requires"].lower()
    assert "pyzmq" in base
    assert not [name for name in ("falcon", "gunicorn", "uvloop", "llama", "jinja2", "nvidia") if name in base]
