"""From `dnf install` to `dnf remove` on a machine booted by a real systemd. One story, told in order."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from common import __version__
from tests.install.machine import Machine, booted, make_base
from tests.install.repository import make_repository, next_version
from tests.support.harness import DEMO_MODEL

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/install"
NEXT = next_version(__version__)
CPU = "devices:\n  - {kind: cpu, memory_mb: 3000, threads: 2}\n"
SOON = "[Service]\nWatchdogSec=4\n"
URL = "http://127.0.0.1:31313"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    assert os.geteuid() == 0, "a container wants root"
    base, root = BUILD / "base", BUILD / "root"
    make_base(base)
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "--archive", "--reflink=auto", str(base), str(root)], check=True)
    make_repository(root / "srv/packages", __version__)
    repository = "[helexa]\nname=helexa\nbaseurl=file:///srv/packages\ngpgcheck=0\nmetadata_expire=0\n"
    (root / "etc/yum.repos.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/yum.repos.d/helexa.repo").write_text(repository)
    shutil.copy(DEMO_MODEL, root / "srv/demo.gguf")
    shutil.copy(Path(__file__).with_name("caller.py"), root / "srv/caller.py")
    with booted(root, BUILD / "console.log") as booted_machine:
        yield booted_machine


def ask(max_tokens: int, text: str = "Count from one to ten.") -> list[str]:
    body = {"model": "demo", "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": text}]
    return ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "120", f"{URL}/v1/chat/completions",
            "--header", "content-type: application/json", "--data", json.dumps(body)]  # fmt: skip


def is_whole(stream: str) -> bool:
    return stream.rstrip().endswith("data: [DONE]") and '"error"' not in stream


def begun(machine: Machine, max_tokens: int) -> "subprocess.Popen[str]":
    """Start a stream and wait for its first token."""
    stream = machine.start(*ask(max_tokens))
    assert stream.stdout is not None
    for line in stream.stdout:
        if '"content":"' in line and '"content":""' not in line:
            return stream
    raise AssertionError(f"no token came\n{machine.journal()}")


def rest(stream: "subprocess.Popen[str]") -> str:
    return stream.communicate(timeout=120)[0]


def serves_version(machine: Machine, version: str) -> bool:
    return f'"version":"{version}"' in machine.attempt("curl", "--silent", f"{URL}/version").stdout


def workers(machine: Machine) -> list[int]:
    found = machine.attempt("pgrep", "-f", "neuron.worker").stdout.split()
    return [int(pid) for pid in found]


def test_dnf_installs_both_with_their_users_folders_and_files(machine: Machine) -> None:
    machine.run("dnf", "--assumeyes", "--quiet", "install", f"helexa-neuron-{__version__}", f"cortex-{__version__}",
                timeout_s=400)  # fmt: skip
    for program in ("cortex", "neuron"):
        assert re.search(rf"^{program}:x:\d+:", machine.run("getent", "passwd", program))
        file = {"cortex": "/etc/cortex/cortex.yaml", "neuron": "/etc/neuron/neuron.yaml"}[program]
        assert machine.run("stat", "--format=%a %U:%G", file) == f"640 root:{program}\n"
        assert machine.show(program, "ActiveState") == "inactive", "nothing starts by itself"
        machine.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{program}.service")
    assert machine.run("stat", "--format=%a %U:%G", "/var/lib/neuron/models") == "2775 neuron:neuron\n"
    for program, name in (
        ("cortex", "cortex version"),
        ("neuron", "neuron --version"),
        ("neuronctl", "neuronctl --version"),
    ):
        assert re.fullmatch(rf"{program} {re.escape(__version__)} \([0-9a-f]+\)\n", machine.run(*name.split()))


def test_enabled_and_started_both_are_active_and_say_what_they_do(machine: Machine) -> None:
    settings = machine.root / "etc/neuron/neuron.yaml"
    settings.write_text(re.sub(r"^devices:.*\n", CPU, settings.read_text(), flags=re.MULTILINE))
    machine.run("systemctl", "enable", "--now", "neuron", "cortex")
    assert machine.show("neuron", "ActiveState") == machine.show("cortex", "ActiveState") == "active"
    machine.wait(lambda: "1 of 1 neurons answer" in machine.show("cortex", "StatusText"), "the gateway has its neuron")
    machine.wait(lambda: "1 of 1 devices serve" in machine.show("neuron", "StatusText"), "the device serves")


def test_a_model_that_is_put_into_its_folder_streams_an_answer(machine: Machine) -> None:
    machine.run("install", "--mode=0644", "/srv/demo.gguf", "/var/lib/neuron/models/demo.gguf")
    machine.wait(lambda: '"demo"' in machine.run("curl", "--silent", f"{URL}/v1/models"), "the model is listed")
    answer = machine.run(*ask(8))
    assert is_whole(answer), answer
    assert "llama-cpp-python" in machine.run("runuser", "-u", "neuron", "--", "neuronctl", "version")


def test_a_reload_of_either_cuts_no_stream(machine: Machine) -> None:
    stream = begun(machine, 200)
    machine.run("systemctl", "reload", "cortex")
    machine.run("systemctl", "reload", "neuron")
    assert is_whole(rest(stream))
    assert machine.show("cortex", "NRestarts") == machine.show("neuron", "NRestarts") == "0"


def test_a_killed_worker_leaves_the_unit_active_and_comes_back(machine: Machine) -> None:
    before = machine.show("neuron", "MainPID")
    [worker] = workers(machine)
    machine.run("kill", "-9", str(worker))
    machine.wait(lambda: workers(machine) not in ([], [worker]), "another worker is there")
    assert is_whole(machine.run(*ask(8)))
    assert machine.show("neuron", "ActiveState") == "active"
    assert machine.show("neuron", "MainPID") == before


@pytest.mark.parametrize("unit", ["neuron", "cortex"])
def test_a_main_loop_that_stands_still_is_restarted_by_the_watchdog(machine: Machine, unit: str) -> None:
    drop_in = machine.root / f"etc/systemd/system/{unit}.service.d/soon.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(SOON)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", unit)
    before = machine.show(unit, "MainPID")
    machine.run("kill", "-STOP", before)
    machine.wait(lambda: machine.show(unit, "NRestarts") == "1", "the watchdog has restarted it")
    machine.wait(lambda: machine.show(unit, "ActiveState") == "active", "it is active again")
    assert machine.show(unit, "MainPID") != before
    assert "watchdog" in machine.run("journalctl", "--no-pager", f"--unit={unit}").lower()
    drop_in.unlink()
    drop_in.parent.rmdir()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", unit)
    machine.wait(lambda: is_whole(machine.attempt(*ask(4)).stdout), "it serves")


def test_a_stop_lets_running_answers_end(machine: Machine) -> None:
    stream = begun(machine, 150)
    machine.run("systemctl", "stop", "cortex")
    assert is_whole(rest(stream))
    assert machine.show("cortex", "Result") == "success"
    machine.run("systemctl", "start", "cortex")
    machine.wait(lambda: is_whole(machine.attempt(*ask(4)).stdout), "it serves")


def test_up_and_down_under_load_no_connection_is_refused_and_nothing_is_forgotten(machine: Machine) -> None:
    neuronctl = ("runuser", "-u", "neuron", "--", "neuronctl")
    machine.run("systemctl", "stop", "neuron")
    state_file = machine.root / "var/lib/neuron/state.json"
    state_file.write_text(json.dumps(json.loads(state_file.read_text()) | {"later": "kept"}))
    machine.run("systemctl", "start", "neuron")
    machine.run(*neuronctl, "pin", "demo")
    models = machine.root / "etc/cortex/models.yaml"
    models.write_text("models: []\n")
    caller = machine.start("python3", "/srv/caller.py", f"{URL}/livez", "/srv/stop")
    try:
        up_and_down(machine, neuronctl, state_file)
    finally:
        (machine.root / "srv/stop").touch()
        called = json.loads(rest(caller).strip().splitlines()[-1])
    assert called["refused"] == 0, called
    assert called["served"] > 20
    assert models.exists()
    assert CPU in (machine.root / "etc/neuron/neuron.yaml").read_text(), "a changed configuration stays"


def up_and_down(machine: Machine, neuronctl: tuple[str, ...], state_file: Path) -> None:
    for version in (NEXT, __version__):
        action = "upgrade" if version == NEXT else "downgrade"
        machine.run("dnf", "--assumeyes", "--quiet", action, f"helexa-neuron-{version}", f"cortex-{version}",
                    f"cortex-cli-{version}", timeout_s=400)  # fmt: skip
        machine.wait(partial(serves_version, machine, version), "the other version runs")
        machine.wait(lambda: "demo" in machine.run(*neuronctl, "models"), "the model is known")
        machine.wait(lambda: is_whole(machine.attempt(*ask(4)).stdout), "it serves")
        state = json.loads(state_file.read_text())
        assert state["pins"] == {"demo": True}
        assert state["later"] == "kept", "an older and a newer neuron leave each other's keys alone"
        assert version in machine.run("cortex", "version")


def test_a_removal_leaves_configuration_and_state_and_nothing_else(machine: Machine) -> None:
    machine.run("dnf", "--assumeyes", "--quiet", "remove", "helexa-neuron", "cortex", "cortex-cli", "helexa-engine")
    for user in ("cortex", "neuron"):
        assert machine.attempt("pgrep", "-u", user).stdout == "", f"a process of {user} is left"
        assert machine.show(user, "LoadState") == "not-found"
    ours = ("(", "-name", "*cortex*", "-o", "-name", "*neuron*", "-o", "-name", "*helexa*", ")")
    others = ("-not", "-path", "*/dnf/*", "-not", "-path", "/var/log/*", "-prune")
    left = machine.run("find", "/usr", "/etc", "/var", "/run", "-xdev", *ours, *others)
    kept = {
        "/etc/cortex",
        "/etc/neuron",
        "/var/lib/cortex",
        "/var/lib/neuron",
        "/var/cache/neuron",
        "/etc/yum.repos.d/helexa.repo",
    }
    assert set(left.split()) <= kept, left
    assert (machine.root / "var/lib/neuron/models/demo.gguf").exists()
    assert (machine.root / "etc/neuron/neuron.yaml.rpmsave").exists()


def test_the_journal_says_each_start_and_end_in_a_line(machine: Machine) -> None:
    lines = machine.run("journalctl", "--no-pager", "--output=cat", "--unit=neuron", "--unit=cortex").splitlines()
    assert not [line for line in lines if line.startswith(("Traceback", "  File "))]
    assert any("listens on" in line for line in lines)
    assert any("signal SIGKILL" in line for line in lines)
