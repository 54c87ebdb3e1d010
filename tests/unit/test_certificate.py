"""Certificates: taken anew when both files fit, refused with the reason when not."""

import os
import ssl
from pathlib import Path

import pytest

from common.errors import ConfigError
from cortex.certificate import Certificate
from tests.support.certificates import make_certificate


def test_files_that_are_replaced_one_after_the_other_are_taken_when_both_are_there(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path / "one", "one.example")
    new_chain, new_key = make_certificate(tmp_path / "two", "two.example")
    certificate = Certificate(chain, key)
    context = certificate.context
    assert not certificate.refresh()
    os.replace(new_chain, chain)
    assert not certificate.refresh()  # the old key does not fit
    assert not certificate.refresh()
    os.replace(new_key, key)
    assert certificate.refresh()
    assert certificate.context is context  # the one that servers hold
    key.unlink()
    assert not certificate.refresh()


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path / "one", "one.example")
    other, _ = make_certificate(tmp_path / "two", "two.example")
    with pytest.raises(ConfigError, match="cannot be used together"):
        Certificate(other, key)
    with pytest.raises(ConfigError, match="No such file"):
        Certificate(tmp_path / "none", key)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod o="):
        Certificate(chain, key)


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    context = Certificate(*make_certificate(tmp_path, "one.example")).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
