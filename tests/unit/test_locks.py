"""What releases are installed from: every version that setup.cfg asks for, pinned, with the digests of its files."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "rpm/lock").glob("*.txt"))
_ENTRY = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[\w.]+)(?P<digests>(?: --hash=sha256:[0-9a-f]{64})+)")


def entries(lock: Path) -> Iterator[re.Match[str]]:
    """Yield the lines of a lock; anything but a pinned version with digests fails."""
    text = re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        entry = _ENTRY.fullmatch(line)
        assert entry is not None, f"{lock.name}: {line}"
        yield entry


def wanted() -> dict[str, list[str]]:
    spec = importlib.util.spec_from_file_location("vendor", ROOT / "tools/vendor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, list[str]] = module.wanted()
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_line_is_a_version_with_its_digests(lock: Path) -> None:
    names = [entry["name"] for entry in entries(lock)]
    assert names
    assert len(names) == len(set(names))


def test_the_locks_hold_what_setup_cfg_asks_for() -> None:
    pinned = {entry["name"]: entry["version"] for lock in LOCKS for entry in entries(lock)}
    for package, requirements in wanted().items():
        for text in requirements:
            requirement = Requirement(text)
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert name in pinned, f"{package} asks for {text}, which no lock has: make lock"
            assert requirement.specifier.contains(pinned[name]), f"{package}: {text}, locked is {pinned[name]}"
