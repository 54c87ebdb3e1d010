"""A folder that cannot be read is named together with what cures it."""

import grp
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron.models.access import absence, complaint

DENIED = PermissionError(13, "Permission denied")
SERVICE = {"INVOCATION_ID": "1"}


def closed(place: Path | str) -> Callable[[Path, int], bool]:
    """Tests may run as root, whom no mode keeps out: everything is open but this."""
    return lambda path, _: path != Path(place)


def test_a_home_directory_under_the_unit_gets_the_drop_in_that_shows_it() -> None:
    line = complaint("/home/ada/models", DENIED, SERVICE, closed("/home"))
    assert line.startswith("/home/ada/models: Permission denied; the unit hides /home: `systemctl edit neuron`")
    assert "ProtectHome=read-only" in line
    assert "\n" not in line


def test_a_folder_for_a_group_under_the_unit_gets_the_drop_in_that_joins_it(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root's own group is nobody's to join
        os.chown(tmp_path, -1, next(g.gr_gid for g in grp.getgrall() if g.gr_gid))
    group = tmp_path.group()
    tmp_path.chmod(0o750)
    line = complaint(str(tmp_path), DENIED, SERVICE, closed(tmp_path))
    assert f"open to the group {group}: `systemctl edit neuron`, add [Service] and SupplementaryGroups={group}" in line
    tmp_path.chmod(0o710)
    assert "setfacl" in complaint(str(tmp_path), DENIED, SERVICE, closed(tmp_path)), "its group may not list it either"
    assert "SupplementaryGroups" in complaint(str(tmp_path / "models"), DENIED, SERVICE, closed(tmp_path))


@pytest.mark.parametrize(
    ("path", "barrier", "environment"),
    [
        ("/home/ada/models", "/home", {}),
        ("/home/ada/models", "/home/ada", SERVICE),  # the unit shows homes by now, and this one is private
        ("/srv/models", "/srv/models", SERVICE),
        ("/homes/x", "/homes", SERVICE),
    ],
)
def test_elsewhere_the_first_folder_in_the_way_is_named_with_what_opens_it(
    path: str, barrier: str, environment: dict[str, str]
) -> None:
    line = complaint(path, DENIED, environment, closed(barrier))
    assert line.endswith(f"setfacl -m u:{os.geteuid()}:{'rx' if path == barrier else 'x'} {barrier}")
    assert "ProtectHome" not in line


def test_another_error_is_said_as_it_is() -> None:
    assert complaint("/srv", OSError(5, "Input/output error"), SERVICE) == "/srv: Input/output error"


def test_a_folder_below_the_units_own_tmp_is_named_and_another_may_come_later() -> None:
    line = absence("/tmp/models", SERVICE)
    assert line is not None
    assert "PrivateTmp=no" in line
    assert absence("/tmp/models", {}) is None
    assert absence("/var/lib/neuron/models", SERVICE) is None
