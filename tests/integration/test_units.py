"""The units and their neighbours, judged by systemd's own tools."""

import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
pytestmark = pytest.mark.needs_systemd


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", ["cortex", "neuron"])
def test_systemd_finds_nothing_wrong_with_the_unit(unit: str, tmp_path: Path) -> None:
    copy = tmp_path / f"{unit}.service"
    # The programs are not installed where the tests run.
    copy.write_text(re.sub(r"/usr/bin/(cortex|neuron|nvidia-modprobe)\b", "/bin/true", unit_text(unit)))
    checked = run("systemd-analyze", "verify", "--man=no", str(copy))
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(("unit", "limit"), [("cortex", 2.0), ("neuron", 4.0)])
def test_the_unit_is_no_more_exposed_than_it_must_be(unit: str, limit: float) -> None:
    judged = run("systemd-analyze", "security", "--offline=yes", str(UNITS / f"{unit}.service"))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert found, judged.stdout + judged.stderr
    assert float(found[1]) <= limit, judged.stdout


@pytest.mark.parametrize(
    ("unit", "folders"),
    [
        ("cortex", {"etc/cortex": 0o750}),
        ("neuron", {"etc/neuron": 0o750, "var/lib/neuron/models": 0o2775}),
    ],
)
def test_users_and_folders_are_made(unit: str, folders: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    users = run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / f"{unit}.sysusers"))
    assert users.returncode == 0, users.stderr
    password_lines = (tmp_path / "etc/passwd").read_text()
    assert re.search(rf"^{unit}:x:\d+:\d+:[^:]*:/var/lib/{unit}:\S*nologin$", password_lines, re.MULTILINE)
    made = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNITS / f"{unit}.tmpfiles"))
    assert made.returncode == 0, made.stderr
    assert {f: (tmp_path / f).stat().st_mode & 0o7777 for f in folders} == folders


def unit_text(unit: str) -> str:
    return (UNITS / f"{unit}.service").read_text()
