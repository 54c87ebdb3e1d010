"""The fake engine, but a worker that is given three threads ends as soon as it starts."""

import os

from tests.support.fake_engine import FakeEngine, open_vocabulary

__all__ = ["create_engine", "open_vocabulary"]
THREADS = 3


def create_engine(threads: int, kind: str) -> FakeEngine:
    """Return a fake engine, or end this process."""
    if threads == THREADS:
        os._exit(9)
    return FakeEngine(kind)
