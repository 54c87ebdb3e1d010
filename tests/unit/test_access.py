"""A folder that cannot be read is named together with what cures it."""

import pytest

from neuron.models.access import complaint

DENIED = PermissionError(13, "Permission denied")


def test_a_home_directory_under_the_unit_gets_the_drop_in_that_shows_it() -> None:
    line = complaint("/home/ada/models", DENIED, {"INVOCATION_ID": "1"})
    assert line.startswith("/home/ada/models: Permission denied; ")
    assert "systemctl edit neuron" in line
    assert "ProtectHome=read-only" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("path", "environment"), [("/home/ada/models", {}), ("/srv/models", {"INVOCATION_ID": "1"}), ("/homes/x", {})]
)
def test_elsewhere_only_the_permissions_are_to_blame(path: str, environment: dict[str, str]) -> None:
    line = complaint(path, DENIED, environment)
    assert "has to be able to read it" in line
    assert "ProtectHome" not in line


def test_another_error_is_said_as_it_is() -> None:
    assert complaint("/srv", OSError(5, "Input/output error"), {"INVOCATION_ID": "1"}) == "/srv: Input/output error"
