"""Every test: no leaks. Marked tests: skipped where the tool is missing, or failed where it must not be missing."""

import os
import shutil
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support import leaks

hypothesis.settings.register_profile("busy-machine", deadline=None)
hypothesis.settings.load_profile("busy-machine")

collect_ignore = [] if os.environ.get("HELEXA_TEST_INSTALL") else ["install"]
"""A machine is booted there: `make test-install`."""
TOOLS = {
    "needs_node": ("node", "npm"),
    "needs_nginx": ("nginx",),
    "needs_caddy": ("caddy",),
    "needs_systemd": ("systemd-analyze",),
    "needs_chromium": ("chromium",),
    "needs_rpm": ("rpmspec", "rpmlint"),
    "needs_prometheus": ("prometheus", "promtool"),
    "needs_netns": ("ip",),
}
REQUIRE_TOOLS = "HELEXA_REQUIRE_TOOLS"
LONG_TOO = "HELEXA_LONG"


@pytest.fixture(autouse=True)
def leak_check() -> Iterator[None]:
    """Fail a test that leaves files, threads or processes behind."""
    before = leaks.take()
    yield
    left = leaks.wait_for_none(before)
    assert not left, "left behind: " + "; ".join(left)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(LONG_TOO):
        return
    long = [i for i in items if i.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [i for i in items if i not in long]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_index") and not os.environ.get(REQUIRE_TOOLS):
        pytest.skip("it fetches packages from an index; `make test-all` does")
    for marker, tools in TOOLS.items():
        missing = [t for t in tools if shutil.which(t) is None]
        if marker == "needs_netns" and os.geteuid() != 0:
            missing.append("root")
        if item.get_closest_marker(marker) and missing:
            text = f"{', '.join(missing)} is missing; `make test-all` installs it"
            if os.environ.get(REQUIRE_TOOLS):
                pytest.fail(text)
            pytest.skip(text)
