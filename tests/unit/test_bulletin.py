"""What the arbiter tells processes that run already."""

from collections.abc import Iterator

import pytest

from cortex.bulletin import Bulletin


@pytest.fixture
def bulletin() -> Iterator[Bulletin]:
    made = Bulletin()
    yield made
    made.close()


def test_a_notice_is_read_once_by_each_reader(bulletin: Bulletin) -> None:
    assert bulletin.read(0) is None
    bulletin.publish(b"one")
    assert bulletin.read(0) == (1, b"one")
    assert bulletin.read(1) is None


def test_only_the_latest_notice_counts_also_a_shorter_one(bulletin: Bulletin) -> None:
    bulletin.publish(b"a long one")
    bulletin.publish(b"short")
    assert bulletin.read(0) == (2, b"short")
    assert bulletin.read(1) == (2, b"short")
