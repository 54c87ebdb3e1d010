"""Read by every Python that starts with this folder on its path: a host that sleeps whenever a test says so.

`$HELEXA_TEST_DRIVER` names the file that tells for how long it has slept; the clock that counts on meanwhile shows it.
"""

import json
import os
import time
from pathlib import Path

_clock_gettime = time.clock_gettime


def _with_sleep(clock: int) -> float:
    slept_s: float = 0.0
    if clock == time.CLOCK_BOOTTIME:
        slept_s = json.loads(Path(os.environ["HELEXA_TEST_DRIVER"]).read_text())["slept_s"]
    return _clock_gettime(clock) + slept_s


time.clock_gettime = _with_sleep
