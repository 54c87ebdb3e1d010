"""llama.cpp's own server and benchmark, from the sources of the installed binding, with the flags it is built with."""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

TARGETS = ("llama-server", "llama-batched-bench")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be downloaded
    "LLAMA_OPENSSL": "OFF",
}


def build() -> Path:
    """Return the folder of the programs; the first call downloads the sources and compiles for some ten minutes."""
    release = version("llama-cpp-python")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "helexa" / f"llama-cpp-{release}"
    programs = cache / "build" / "bin"
    if all((programs / name).exists() for name in TARGETS):
        return programs
    cache.mkdir(parents=True, exist_ok=True)
    print(f"building llama.cpp's own programs in {cache}; this is done once", file=sys.stderr)
    sources = _sources(cache, release)
    definitions = [f"-D{key}={value}" for key, value in OPTIONS.items()]
    _run("cmake", "-S", str(sources), "-B", str(cache / "build"), *definitions)
    _run("cmake", "--build", str(cache / "build"), "--parallel", str(os.cpu_count() or 1), "--target", *TARGETS)
    return programs


def _sources(cache: Path, release: str) -> Path:
    unpacked = cache / f"llama_cpp_python-{release}"
    if not unpacked.exists():
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps")
        _run(*pip, "--no-binary", ":all:", "--dest", str(cache), f"llama-cpp-python=={release}")
        with tarfile.open(next(cache.glob("*.tar.gz"))) as archive:
            archive.extractall(cache, filter="data")
    return unpacked / "vendor" / "llama.cpp"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
