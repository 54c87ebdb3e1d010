"""Build source packages (`srpm`) or all packages (`rpm`) into build/rpm, without a network, from build/vendor.

What is packed is the last commit. The version is that of common/__init__.py; the specs get it from here.
"""

import argparse
import os
import re
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "build/vendor"
TOP = ROOT / "build/rpm"
LOCKS = ROOT / "rpm/lock"
ENGINE = "helexa-engine"
SPECS = ("cortex", "helexa-neuron", ENGINE)
EPOCH = 1_750_000_000
"""Of every file in the vendored archive, so that equal content gives equal archives."""


def main() -> None:
    """Build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("srpm", "rpm"))
    parser.add_argument("specs", nargs="*", default=list(SPECS), help=f"default: {' '.join(SPECS)}")
    parser.add_argument("--top", type=Path, default=TOP, help="default: build/rpm")
    parser.add_argument("--as-version", metavar="V", help="another version than the source says; for tests of upgrades")
    parser.add_argument("--no-check", action="store_true", help="no unit tests, quick compression; for tests")
    parser.add_argument("--one-cpu", action="store_true", help="one CPU backend, for any processor; compiles sooner")
    parser.add_argument("--with-cuda", action="store_true", help="also helexa-neuron-cuda, which wants nvcc")
    parser.add_argument("--cuda-architectures", metavar="LIST", help="for example 75;86; default: in the spec")
    arguments = parser.parse_intermixed_args()

    version = arguments.as_version or _own_version()
    sources = arguments.top / "SOURCES"
    for folder in ("SOURCES", "SPECS"):
        (arguments.top / folder).mkdir(parents=True, exist_ok=True)
    _pack_source(sources, version, arguments.as_version)
    _pack_vendored(
        sources / f"helexa-vendor-{version}.tar", sorted(p for p in VENDOR.iterdir() if ENGINE not in p.name)
    )
    for lock in LOCKS.glob("*.txt"):
        (sources / lock.name).write_bytes(lock.read_bytes())
    options = ["--define", f"_topdir {arguments.top.resolve()}", *_missing_macros()]
    if arguments.no_check:
        options += ["--nocheck", "--define", "_binary_payload w1.gzdio"]
    if arguments.one_cpu:
        options += ["--without", "all_cpus"]
    if arguments.with_cuda:
        options += ["--with", "cuda"]
    if arguments.cuda_architectures:
        options += ["--define", f"cuda_architectures {arguments.cuda_architectures}"]
    for name in arguments.specs:
        if name == ENGINE:
            _pack_engine(sources)
        spec = arguments.top / "SPECS" / f"{name}.spec"
        text = (ROOT / f"rpm/{name}.spec").read_text(encoding="utf-8")
        spec.write_text(text.replace("@VERSION@", version), encoding="utf-8")
        kind = "-bs" if arguments.kind == "srpm" else "-ba"
        # Nothing of the builder's network or packages: pip is told so in the specs, this is for everything else.
        environment = os.environ | {"no_proxy": "*", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        subprocess.run(["rpmbuild", kind, *options, str(spec)], check=True, env=environment)


def _own_version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "common/__init__.py").read_text(), re.MULTILINE)
    assert found
    return found[1]


def _pack_source(sources: Path, version: str, stated: str | None) -> None:
    prefix = f"helexa-{version}/"
    archive = sources / f"helexa-{version}.tar.gz"
    command = ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--prefix={prefix}", f"--output={archive}"]
    if stated:
        # The later of two members wins when they are unpacked.
        changed = ROOT / "build/__init__.py"
        text = (ROOT / "common/__init__.py").read_text(encoding="utf-8")
        changed.write_text(text.replace(_own_version(), stated), encoding="utf-8")
        command += [f"--prefix={prefix}common/", f"--add-file={changed}", f"--prefix={prefix}"]
    subprocess.run([*command, "HEAD"], check=True)


def _pack_vendored(archive: Path, folders: list[Path]) -> None:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = EPOCH
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(archive, "w") as tar:
        for folder in folders:
            tar.add(folder, f"vendor/{folder.name}", recursive=False, filter=plain)
            for file in sorted(folder.iterdir()):
                tar.add(file, f"vendor/{folder.name}/{file.name}", filter=plain)


def _pack_engine(sources: Path) -> None:
    [source] = (VENDOR / f"{ENGINE}.source").iterdir()
    (sources / source.name).write_bytes(source.read_bytes())
    version = source.name.removesuffix(".tar.gz").rpartition("-")[2]
    _pack_vendored(sources / f"helexa-engine-vendor-{version}.tar", [VENDOR / ENGINE])
    for name in ("engine-abi.c", "licences.py"):
        (sources / name).write_bytes((ROOT / "rpm" / name).read_bytes())


def _missing_macros() -> list[str]:
    """Return what rpmbuild has to be told on a distribution that is not made of RPMs."""
    told = subprocess.run(["rpm", "--eval", "%{?_unitdir}"], capture_output=True, text=True, check=True).stdout
    return [] if told.strip() else ["--load", str(ROOT / "rpm/macros.plain"), "--nodeps"]


if __name__ == "__main__":
    main()
