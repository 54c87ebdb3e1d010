"""A child's tie to the supervisor: whatever ends the supervisor ends its children, within a moment."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OOM_SCORE_ADJ = 500
"""A host out of memory takes a child, which is started again, and not the supervisor, with which all would go."""
ORPHANED = 75
"""Exit status of a child whose supervisor is gone."""
NO_ENGINE = 78
"""Exit status of a child whose engine cannot be loaded, or is not one that this program was written for."""


def attach(lifeline: int, supervisor_pid: int) -> None:
    """Tie this process to the supervisor; to be called first in main.

    Three ties, since each alone has a hole: PDEATHSIG also reaches a process that is stuck in a C call, but follows the
    *thread* that spawned it; the parent may have died before PDEATHSIG was set, which getppid tells; and the pipe,
    whose other end only the supervisor holds, works where PDEATHSIG was lost (it is cleared by some execs).
    Also keeps a crash of the driver from writing a core as large as the model.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor_pid:
        sys.exit(ORPHANED)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _go_first_when_memory_ends()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the supervisor's to handle
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()


def _go_first_when_memory_ends() -> None:
    file = Path("/proc/self/oom_score_adj")
    # Some containers have it read-only; what a child is for does not depend on it.
    with contextlib.suppress(OSError):
        if int(file.read_text()) < _OOM_SCORE_ADJ:
            file.write_text(str(_OOM_SCORE_ADJ))


def _end_with(lifeline: int) -> None:
    while True:
        try:
            if os.read(lifeline, 1) == b"":
                os._exit(ORPHANED)
        except InterruptedError:
            continue
