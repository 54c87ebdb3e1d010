"""Invitations: good once, for a while, and nobody's secret half is kept."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from neuron.broker.invitations import invite, read_invitations, use_up


def test_an_invitation_is_good_once_and_until_its_end(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "invitations"
    one, two = invite(path, 1000.0, 60.0), invite(path, 1010.0, 60.0)
    assert read_invitations(path) == {one.public.hex(): 1060.0, two.public.hex(): 1070.0}
    for pair in (one, two):
        assert pair.secret.hex() not in path.read_text()
    assert use_up(path, one.public.hex(), 1059.0)
    assert not use_up(path, one.public.hex(), 1059.0)
    assert not use_up(path, two.public.hex(), 1070.0)


def test_what_has_ended_is_struck_out_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "invitations"
    invite(path, 1000.0, 60.0)
    new = invite(path, 2000.0, 60.0)
    assert list(read_invitations(path)) == [new.public.hex()]


@pytest.mark.parametrize("line", ["ab", "ab 12", "ab" * 32 + " soon", "ab" * 32])
def test_a_mistake_names_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "invitations"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match="invitations:2"):
        read_invitations(path)
