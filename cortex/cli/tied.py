"""`python -m cortex.cli.tied PARENT MODULE …`: become `python -m MODULE …`, ended when the parent ends.

PR_SET_PDEATHSIG survives the exec, so a daemon that knows nothing of its starter is tied to it all the same.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process, then replace it."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit(1)  # it ended before the tie was made
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 # no shell is wanted


if __name__ == "__main__":
    main()
