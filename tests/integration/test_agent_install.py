"""`pipx install helexa` and `uvx --from helexa helexa-acp`: the agent alone, from a wheel of this tree, at work."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common import __version__
from tests.support.harness import ROOT
from tests.support.scripted_editor import ScriptedEditor
from tests.support.scripted_upstream import Round, ScriptedUpstream

pytestmark = [pytest.mark.needs_index, pytest.mark.timeout(600)]
SOURCE = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "common", "cortex", "neuron")
FOREIGN = ("falcon", "gunicorn", "uvloop", "llama_cpp", "jinja2", "pynvml", "numpy", "prometheus_client")
"""What only the daemons need."""


@dataclass
class Tools:
    """pipx and uv, and a folder that is all the index they have: the wheel of this tree and what it requires."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """Run one of them; return its output."""
        path = f"{self.folder / 'tools' / 'bin'}:{self.environment['PATH']}"
        return _run(*command, environment={**self.environment, "PATH": path})


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """Build the wheel, fetch what it requires with pip as it is configured here, and cut everything else off."""
    folder = tmp_path_factory.mktemp("install")
    source, house = folder / "source", folder / "house"
    source.mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(house), str(source))
    (wheel,) = house.glob("helexa-*.whl")
    _run(*pip, "download", "--dest", str(house), str(wheel), "pip", "pipx", "uv")
    _run(sys.executable, "-m", "venv", str(folder / "tools"))
    program = str(folder / "tools" / "bin" / "python")
    _run(program, *pip[1:], "install", "--no-index", "--find-links", str(house), "pipx", "uv")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "PIPX_", "PYTHON", "VIRTUAL_ENV"))}
    yield Tools(folder, {
        **kept, "HOME": str(folder / "home"), "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin"), "PIPX_DEFAULT_PYTHON": sys.executable,
        "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(house), "UV_CACHE_DIR": str(folder / "cache"),
        "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1",
    })  # fmt: skip
    shutil.rmtree(folder)


async def _work(folder: Path, upstream: ScriptedUpstream, command: str, environment: dict[str, str]) -> None:
    """Have the installed agent read a file for the model, and answer."""
    plain: dict[str, Any] = {**environment, "PYTHONPATH": ""}
    async with ScriptedEditor(folder, upstream.url, shell=f"cd /; exec {command}", **plain) as editor:
        (editor.workspace / "a.txt").write_text("content of a")
        session = await editor.new()
        assert await editor.stop_reason(session, "read it") == "end_turn"
        assert editor.said() == "it is read"
        assert [e["role"] for e in editor.history(session)] == ["user", "assistant", "tool", "assistant"]


def _script() -> list[Round]:
    return [Round(calls=[("c", "read_file", {"path": "a.txt"})]), Round("it is read")]


def test_pipx_installs_the_agent_without_gateway_and_engine_and_it_works(tools: Tools, tmp_path: Path) -> None:
    tools.run("pipx", "install", "helexa")
    agent = tools.folder / "bin" / "helexa-acp"
    assert __version__ in _run(str(agent), "--version", environment=tools.environment)
    (packages,) = (tools.folder / "pipx" / "venvs" / "helexa" / "lib").glob("python3*/site-packages")
    assert (packages / "cortex" / "acp").is_dir()
    assert [name for name in FOREIGN if (packages / name).exists()] == []
    with ScriptedUpstream(*_script()) as upstream:
        asyncio.run(_work(tmp_path, upstream, str(agent), tools.environment))


def test_uvx_runs_the_agent_without_installing_it(tools: Tools, tmp_path: Path) -> None:
    assert __version__ in tools.run("uvx", "--from", "helexa", "helexa-acp", "--version")
    uvx = tools.folder / "tools" / "bin" / "uvx"
    with ScriptedUpstream(*_script()) as upstream:
        asyncio.run(_work(tmp_path, upstream, f"{uvx} --from helexa helexa-acp", tools.environment))
