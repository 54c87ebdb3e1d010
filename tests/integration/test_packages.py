"""The specs, judged by rpm's own tools: what goes into which package, and what runs when it is installed."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs_rpm
UNITS = {"cortex": "cortex", "helexa-neuron": "neuron"}


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specs as packages.py writes them, beside the locks they read."""
    top = tmp_path_factory.mktemp("specs")
    for spec in (ROOT / "rpm").glob("*.spec"):
        (top / spec.name).write_text(spec.read_text().replace("@VERSION@", "9.8.7"))
    for lock in (ROOT / "rpm/lock").glob("*.txt"):
        (top / lock.name).write_bytes(lock.read_bytes())
    return top


@cache
def macros() -> list[str]:
    has_them = run("rpm", "--eval", "%{?_unitdir}").strip()
    return [] if has_them else ["--load", str(ROOT / "rpm/macros.plain")]


def parsed(folder: Path, name: str, *options: str) -> str:
    return run("rpmspec", "-P", "--define", f"_sourcedir {folder}", *macros(), *options, str(folder / f"{name}.spec"))


def query(folder: Path, name: str, what: str, *options: str) -> list[str]:
    defined = ["--define", f"_sourcedir {folder}", *macros(), *options]
    return run("rpmspec", "-q", *defined, "--qf", what, str(folder / f"{name}.spec")).split("\n")


def section(text: str, name: str) -> str:
    found = re.search(
        rf"^%{name}\n(.*?)(?=^%(?:pre|post|preun|postun|files|changelog)\b)", text, re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found[1]


def test_the_packages_are_these(folder: Path) -> None:
    assert {p for n in ("cortex", *UNITS) for p in query(folder, n, "%{NAME} %{VERSION}\n") if p} == {
        "cortex 9.8.7",
        "cortex-cli 9.8.7",
        "helexa-acp 9.8.7",
        "helexa-neuron 9.8.7",
    }
    assert [p for p in query(folder, "helexa-engine", "%{NAME}\n") if p] == ["helexa-engine"]


def test_the_command_line_and_the_agent_need_neither_gateway_nor_engine(folder: Path) -> None:
    for line in query(folder, "cortex", "%{NAME}: [%{REQUIRES} ]\n"):
        if line.startswith(("cortex-cli:", "helexa-acp:")):
            needed = line.partition(": ")[2].split()
            assert not {"cortex", "helexa-engine", "helexa-neuron"} & set(needed), line


@pytest.mark.parametrize("name", UNITS)
def test_the_scriptlets_are_these(folder: Path, name: str) -> None:
    text, unit = parsed(folder, name), f"{UNITS[name]}.service"
    assert f"u {UNITS[name]} - " in section(text, "pre")
    assert unit in section(text, "post")
    before = section(text, "preun")
    assert unit in before
    assert re.search(r"\$1 -eq 0|remove", before), "only the last removal may stop it"
    after = section(text, "postun")
    assert re.search(r"\$1 -ge 1", after), "only an upgrade may restart it"
    assert re.search(r"try-restart|mark-restart", after), "and only if it runs"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "cortex",
            [
                "/usr/bin/cortex",
                "/usr/bin/helexa-acp",
                "/usr/lib/systemd/system/cortex.service",
                "/usr/lib/sysusers.d/cortex.conf",
                "/usr/lib/tmpfiles.d/cortex.conf",
                "/usr/lib/firewalld/services/cortex.xml",
                "/usr/lib/firewalld/services/cortex-metrics.xml",
                "%dir %attr(0750,root,cortex) /etc/cortex",
                "%config(noreplace) %attr(0640,root,cortex) /etc/cortex/cortex.yaml",
                "/usr/share/man/man1/cortex.1*",
            ],
        ),
        (
            "helexa-neuron",
            [
                "/usr/bin/neuron",
                "/usr/bin/neuronctl",
                "/usr/lib/systemd/system/neuron.service",
                "/usr/lib/sysusers.d/neuron.conf",
                "/usr/lib/tmpfiles.d/neuron.conf",
                "/usr/lib/firewalld/services/neuron.xml",
                "%dir %attr(0750,root,neuron) /etc/neuron",
                "%config(noreplace) %attr(0640,root,neuron) /etc/neuron/neuron.yaml",
                "%dir %attr(2775,neuron,neuron) /var/lib/neuron/models",
                "/usr/share/man/man1/neuronctl.1*",
            ],
        ),
    ],
)
def test_the_files_are_these(folder: Path, name: str, files: list[str]) -> None:
    assert [f for f in files if f not in parsed(folder, name).splitlines()] == []


def test_every_vendored_part_is_named_with_its_version(folder: Path) -> None:
    provided = "\n".join(query(folder, "cortex", "[%{PROVIDES} %{PROVIDEVERSION}\n]"))
    assert re.search(r"bundled\(python3dist\(falcon\)\) \d", provided)
    assert re.search(r"bundled\(python3dist\(gunicorn-h1c\)\) \d", provided)
    assert re.search(r"bundled\(python3dist\(pydantic\)\) \d", provided)


def test_the_backend_for_cuda_is_a_package_that_comes_with_the_driver(folder: Path) -> None:
    options = ["--with", "cuda", "--define", "cuda_architectures 75;86"]
    lines = query(folder, "helexa-engine", "%{NAME}: [%{SUPPLEMENTS} ][%{REQUIRES} %{REQUIREVERSION} ]\n", *options)
    [line] = [x for x in lines if x.startswith("helexa-neuron-cuda:")]
    assert "(helexa-neuron and libcuda.so.1()(64bit))" in line
    assert re.search(r"helexa-engine\(x86-64\) 0\.\d+\.\d+-1", line)
    assert "-DCMAKE_CUDA_ARCHITECTURES=75;86" in parsed(folder, "helexa-engine", *options)
    assert "sm_" not in parsed(folder, "helexa-engine")


def test_rpmlint_finds_no_error_in_the_specs(folder: Path) -> None:
    specs = [str(p) for p in sorted(folder.glob("*.spec"))]
    said = run("rpmlint", "--config", str(ROOT / "rpm/rpmlint.toml"), *specs)
    assert ": E: " not in said
