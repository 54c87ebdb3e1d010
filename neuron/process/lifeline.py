"""A child's tie to the supervisor: whatever ends the supervisor ends its children, within a moment."""

import ctypes
import os
import resource
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
ORPHANED = 75
"""Exit status of a child whose supervisor is gone."""


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the supervisor's to handle
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()


def _end_with(lifeline: int) -> None:
    while True:
        try:
            if os.read(lifeline, 1) == b"":
                os._exit(ORPHANED)
        except InterruptedError:
            continue
