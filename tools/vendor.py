"""Vendored wheels of the packages: `lock` chooses them and writes rpm/lock/*.txt, `fetch` downloads what these name.

A lock names every distribution with the digests of its wheels, for the oldest Python that is built for and for
Fedora's; rpmbuild installs from them with --require-hashes and without a network.
"""

import argparse
import configparser
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "rpm/lock"
PYTHONS = ("3.11", "3.14")
"""Debian 12's, on which the tests build, and Fedora's."""
PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_24", "_2_26", "_2_27", "_2_28"))
ENGINE = "llama-cpp-python"
EDITOR = "agent-client-protocol"
SOURCE = ".source"
SPEEDUP = "gunicorn-h1c>=0.6.9,<0.7"
"""All that gunicorn's extra `fast` brings; there is no wheel of it for pip to choose."""
TESTERS = ("hypothesis", "psutil", "pytest", "pytest-timeout")
"""What %check runs the unit tests with."""


def read(section: str, key: str) -> list[str]:
    """Return a list of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [line for line in config[section][key].split("\n") if line and not line.startswith("#")]


def wanted() -> dict[str, list[str]]:
    """Return the wheels that each package asks for."""
    base = read("options", "install_requires")
    extra = "options.extras_require"
    gateway = [r.replace("[fast]", "") for r in read(extra, "gateway")]
    plain = [r for r in base if _name(r) != EDITOR]
    neuron = [r for r in read(extra, "neuron") if _name(r) != ENGINE]
    return {
        "cortex-cli": plain,
        "cortex": plain + gateway,
        "helexa-acp": base + gateway + read(extra, "mcp"),
        "helexa-neuron": plain + neuron,
        "build": ["setuptools>=77", "wheel"],
        "check": [r for r in read(extra, "test") if _name(r) in TESTERS],
        "helexa-engine": ["numpy", "diskcache", "jinja2", "typing-extensions"],
    }


def lock() -> None:
    """Resolve for both Pythons to the same versions, and write the locks."""
    requirements = wanted()
    everything = sorted({r for listed in requirements.values() for r in listed})
    pins = {name: version for name, (version, _) in _resolve(everything, PYTHONS[-1], {}).items()}
    resolved = {
        python: {package: _resolve(listed, python, pins) for package, listed in requirements.items()}
        for python in PYTHONS
    }
    LOCKS.mkdir(parents=True, exist_ok=True)
    for package in requirements:
        above = {"cortex": ("cortex-cli",), "helexa-acp": ("cortex-cli", "cortex")}.get(package, ())
        inherited = {n for other in above for n in resolved[PYTHONS[0]][other]}
        lines = [f"# The wheels of {package}, for Python {' and '.join(PYTHONS)} on x86_64; `make lock` writes it."]
        names = sorted({n for python in PYTHONS for n in resolved[python][package]} - inherited)
        for name in names:
            found = [resolved[p][package][name] for p in PYTHONS if name in resolved[p][package]]
            [version] = {v for v, _ in found}
            digests = sorted({d for _, d in found})
            lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{d}" for d in digests)]))
        (LOCKS / f"{package}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    [engine] = [r for r in read("options.extras_require", "neuron") if _name(r) == ENGINE]
    for package, requirement in {"cortex": SPEEDUP, "helexa-engine": engine}.items():
        (LOCKS / f"{package}{SOURCE}.txt").write_text(_lock_source(requirement), encoding="utf-8")


def _lock_source(requirement: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        _pip("download", "--no-deps", "--no-binary=:all:", "--dest", folder, requirement)
        [file] = Path(folder).iterdir()
        version = file.name.removesuffix(".tar.gz").rpartition("-")[2]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{_name(requirement)}=={version} \\\n    --hash=sha256:{digest}\n"


def fetch(folder: Path) -> None:
    """Download every wheel of the locks, and the engine's source, into FOLDER/PACKAGE."""
    for file in sorted(LOCKS.glob("*.txt")):
        target = folder / file.stem
        expected = set(re.findall(r"sha256:([0-9a-f]{64})", file.read_text()))
        target.mkdir(parents=True, exist_ok=True)
        for kept in list(target.iterdir()):
            digest = hashlib.sha256(kept.read_bytes()).hexdigest()
            if digest in expected:
                expected.remove(digest)
            else:
                kept.unlink()
        command = ["download", "--no-deps", "--require-hashes", "--requirement", str(file), "--dest", str(target)]
        if expected and file.stem.endswith(SOURCE):
            _pip(*command, "--no-binary=:all:")
        elif expected:
            for python in PYTHONS:
                _pip(*command, *_environment(python))


def _resolve(requirements: list[str], python: str, pins: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return the version and the digest of each distribution that these bring."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "pins.txt")
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in pins.items()))
        command = ["install", "--dry-run", "--ignore-installed", "--report", f"{folder}/report", "--target", folder]
        _pip(*command, "--constraint", str(constraints), *_environment(python), *requirements)
        report: dict[str, Any] = json.loads(Path(folder, "report").read_text())
    return {
        _name(item["metadata"]["name"]): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in report["install"]
    }


def _environment(python: str) -> list[str]:
    platforms = [f"--platform={p}" for p in PLATFORMS]
    return [*platforms, f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~;, ]", requirement)[0]).lower()


def main() -> None:
    """Run one of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("lock", "fetch"))
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build/vendor", help="default: build/vendor")
    arguments = parser.parse_args()
    if arguments.command == "lock":
        lock()
    else:
        fetch(arguments.folder)


if __name__ == "__main__":
    main()
