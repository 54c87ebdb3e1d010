"""What the machine installs from: the packages, a newer build of them, and a stand-in for Fedora's names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build/rpm/RPMS/x86_64"
NEWER = ROOT / "build/rpm-next"
PROGRAMS = ("cortex", "cortex-cli", "helexa-neuron", "helexa-acp")


def next_version(version: str) -> str:
    """Return the version that is built as the newer one."""
    major, minor, patch = version.split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def make_repository(folder: Path, version: str) -> None:
    """Fill a folder with what is built, what is to be built, and the index of both. Wants `make rpm` to have run."""
    folder.mkdir(parents=True)
    newer = NEWER / "RPMS/x86_64"
    if not (newer / f"cortex-{next_version(version)}-1.x86_64.rpm").exists():
        build = [sys.executable, "tools/packages.py", "rpm", "--no-check", "--top", str(NEWER)]
        build += ["--as-version", next_version(version), "cortex", "helexa-neuron"]
        subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1800)
    packages = [p for v, f in ((version, BUILT), (next_version(version), newer)) for p in of_version(f, v)]
    packages += sorted(BUILT.glob("helexa-engine-*.rpm"))
    for package in packages:
        shutil.copy(package, folder)
    _make_stub(folder, packages)
    subprocess.run(["createrepo_c", "--quiet", str(folder)], check=True, timeout=120)


def of_version(folder: Path, version: str) -> list[Path]:
    """Return the packages of the programs."""
    found = [p for name in PROGRAMS for p in sorted(folder.glob(f"{name}-{version}-1*.x86_64.rpm"))]
    assert len(found) == len(PROGRAMS), f"{folder} lacks packages of {version}; `make rpm` builds them"
    return found


def _make_stub(folder: Path, packages: list[Path]) -> None:
    """Build a package that provides what Debian has under other names: Python, systemd, the C library."""
    required = subprocess.run(
        ["rpm", "-qp", "--requires", *map(str, packages)], capture_output=True, text=True, check=True
    ).stdout
    names = {
        line.split(" >")[0].split(" <")[0]
        for line in required.splitlines()
        if re.match(r"(lib|ld-linux|rtld|python|systemd|/bin/|/usr/bin/)", line)
    }
    spec = folder / "stub.spec"
    spec.write_text(
        "Name: names-of-fedora\nVersion: 1\nRelease: 1\nSummary: What Debian has under other names\n"
        "License: MIT\n" + "".join(f"Provides: {n}\n" for n in sorted(names)) + "%description\nNone.\n%files\n"
    )
    top = folder / "stub"
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--target", "x86_64", "--define", f"_topdir {top}", str(spec)],
        check=True,
        timeout=60,
    )
    for built in top.rglob("*.rpm"):
        shutil.move(built, folder)
    shutil.rmtree(top)
    spec.unlink()
