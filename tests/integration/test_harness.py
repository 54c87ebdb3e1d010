"""The harness holds its daemons to leaving nothing behind, also where the tests themselves are killed."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.harness import ROOT, Neuron, wait_gone

RUNNER = """
import sys, time
from pathlib import Path
from tests.support.harness import Neuron

with Neuron(Path(sys.argv[1]), engine="tests.support.fake_engine") as neuron:
    neuron.wait_for(lambda s: s["state"]["devices"][0]["worker_pid"])
    print(neuron.pid, flush=True)
    time.sleep(60)
"""


def test_a_run_that_is_killed_leaves_no_daemon(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path / "n")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as runner:
        assert runner.stdout is not None
        daemon = psutil.Process(int(runner.stdout.readline()))
        family = [daemon, *daemon.children(recursive=True)]
        assert len(family) >= 3  # the supervisor, a worker, prep
        runner.kill()
        assert wait_gone(family, 10.0) == []


def test_a_child_that_outlives_its_daemon_is_a_failure_and_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as outliving:
        with (
            pytest.raises(AssertionError, match="left behind"),
            Neuron(tmp_path / "n", engine="tests.support.fake_engine") as neuron,
        ):
            neuron._family.add(psutil.Process(outliving.pid))
        assert outliving.wait(5) == -9
