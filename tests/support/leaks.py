"""What a test must not leave behind: open files, threads, children."""

import gc
import os
import threading
import time
from dataclasses import dataclass

import psutil

SETTLE_S = 3.0
"""Sockets and processes close in their own time; only what is still there after this is a leak."""


@dataclass(frozen=True)
class Snapshot:
    """What this process holds."""

    files: frozenset[tuple[int, str]]
    threads: frozenset[int]
    children: frozenset[int]


def take() -> Snapshot:
    """Look at this process."""
    files = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            files.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the one listing the folder itself
    threads = frozenset(t.ident or 0 for t in threading.enumerate())
    return Snapshot(frozenset(files), threads, frozenset(c.pid for c in psutil.Process().children()))


def wait_for_none(before: Snapshot) -> list[str]:
    """Return what is there now and was not before, after giving it time to go."""
    deadline, is_collected = time.monotonic() + SETTLE_S, False
    while True:
        now = take()
        left = [f"file {fd} -> {target}" for fd, target in now.files - before.files]
        left += [f"thread {t.name}" for t in threading.enumerate() if t.ident in now.threads - before.threads]
        left += [f"child process {pid}" for pid in now.children - before.children]
        if not left or time.monotonic() > deadline:
            return sorted(left)
        if is_collected:
            time.sleep(0.05)
        else:
            gc.collect()  # clients of the SDKs close their pools when they are collected; too slow for every test
            is_collected = True
