"""neuronctl doctor and cortex doctor name what is wrong, and what to do."""

import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from common.keys import make_pair
from neuron.broker.authorized import authorize
from neuron.ctl.doctor import _disks, find_barrier
from neuron.settings import NeuronSettings
from tests.support.gguf_files import truncate, write_tiny
from tests.support.harness import ROOT, Gateway, Neuron, free_port

CPU = [{"kind": "cpu", "memory_mb": 500}]


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Run a doctor; return its status, the findings by subject, and what it says on stderr."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "NEURON_"))}
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--json"], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env=plain,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {f["subject"]: f for f in json.loads(done.stdout)}, done.stderr


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_healthy_host_and_gateway_have_no_failure(tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "tiny.gguf")
    with Neuron(tmp_path / "n", model_dirs=[str(tmp_path / "models")]) as neuron:
        neuron.wait_for(lambda s: len(s["state"]["models"]) == 1)
        assert neuron.ctl("load", "tiny").returncode == 0
        me = pwd.getpwuid(os.getuid()).pw_name
        config = str(tmp_path / "n" / "neuron.yaml")
        status, found, _ = doctor(
            "neuron.ctl", "--endpoint", neuron.endpoint, "doctor", "--config", config, "--user", me
        )
        assert status == 0, found
        assert found["llama.cpp"]["text"].startswith("llama-cpp-python")
        assert found["models on disk"]["text"] == "1"
        assert found["service"]["level"] == "ok"
        assert "measured" in found["model tiny"]["text"]
        assert (found["link"]["level"], "cortex doctor" in found["link"]["remedy"]) == ("warning", True)
        with Gateway(tmp_path / "g", neurons=[neuron]):
            status, found, _ = doctor("cortex", "doctor", "--config", str(tmp_path / "g" / "cortex.yaml"))
    assert status == 0, found
    assert {found[s]["level"] for s in ("configuration", "gateway", "neuron beast")} == {"ok"}


def test_what_is_wrong_on_a_host_is_named_with_what_to_do(tmp_path: Path) -> None:
    truncate(write_tiny(tmp_path / "models" / "half.gguf"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        devices = [*CPU, {"uuid": "GPU-absent"}]
        settings = {"listen": address, "devices": devices, "model_dirs": ["models", "absent"]}
        config = write(tmp_path / "neuron.yaml", settings)
        status, found, said = doctor(
            "neuron.ctl", "--endpoint", "127.0.0.1:1", "--timeout", "0.2", "doctor", "--config", config
        )
    assert status == 1
    assert "of the checks failed" in said
    assert "no GPU fits 'GPU-absent'" in found["device GPU-absent"]["text"]
    assert found["service"]["text"] == f"{address} is taken by a program that is no neuron"
    assert "truncated" in found["model half"]["text"]
    assert "neuronctl models rm half" in found["model half"]["remedy"]
    assert str(tmp_path / "absent") in found["model_dirs"]["text"]


def test_a_configuration_that_cannot_be_read_is_the_first_finding(tmp_path: Path) -> None:
    config = write(tmp_path / "neuron.yaml", {"devces": "auto"})
    status, found, _ = doctor("neuron.ctl", "--timeout", "0.2", "doctor", "--config", config)
    assert (status, list(found)) == (1, ["configuration"])
    assert "devces: unknown key" in found["configuration"]["text"]


def test_what_is_wrong_around_a_gateway_is_named_with_what_to_do(tmp_path: Path) -> None:
    neurons = [{"name": "gone", "endpoint": f"127.0.0.1:{free_port()}"}]
    settings = {"gateway": {"listen": f"127.0.0.1:{free_port()}"}, "neurons": neurons}
    config = write(tmp_path / "cortex.yaml", settings)
    status, found, _ = doctor("cortex", "doctor", "--config", config)
    assert status == 1
    assert "cannot be reached" in found["neuron gone"]["text"]
    assert "openssl rand" in found["keys"]["remedy"]
    assert "systemctl start cortex" in found["gateway"]["remedy"]


def test_the_folder_that_keeps_the_service_user_out_is_named() -> None:
    stranger = os.getuid() + 12345
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # below pytest's own folder nobody else may go
        top = Path(name).resolve()
        top.chmod(0o755)
        folder = top / "closed" / "models"
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        (top / "closed").chmod(0o711)
        assert find_barrier(folder, stranger, set()) is None
        (top / "closed").chmod(0o710)
        assert find_barrier(folder, stranger, set()) == top / "closed"
        assert find_barrier(folder, stranger, {folder.stat().st_gid}) is None
        folder.chmod(0o711)
        assert find_barrier(folder, stranger, set()) == top / "closed"
        (top / "closed").chmod(0o711)
        assert find_barrier(folder, stranger, set()) == folder
        folder.chmod(0o755)
        model = write_tiny(folder / "secret.gguf")
        model.chmod(0o640)
        assert find_barrier(model, stranger, set()) == model
        settings = NeuronSettings(model_dirs=[str(folder)], hub_cache=str(top / "none"))
        [found] = [f for f in _disks(settings, None, "nobody") if f.level == "failure"]
        assert (found.subject, str(model) in found.text, "chmod o+r" in found.remedy) == ("model secret", True, True)
        model.chmod(0o644)
        assert find_barrier(model, stranger, set()) is None
        assert [f for f in _disks(settings, None, "nobody") if f.level == "failure"] == []


def test_a_bus_with_keys_is_held_to_what_it_needs(tmp_path: Path) -> None:
    def keys() -> tuple[str, str]:
        settings = NeuronSettings(listen="127.0.0.1:1", security="curve", hub_cache=str(tmp_path / "none"))
        return next((f.level, f.text) for f in _disks(settings, tmp_path / "neuron.yaml", None) if f.subject == "keys")

    assert "neuron.key is missing" in keys()[1]
    make_pair(tmp_path / "keys" / "neuron.key")
    assert keys() == ("warning", "no gateway is authorised, so none can use this host")
    authorized = tmp_path / "keys" / "authorized_keys"
    authorize(authorized, "gateway", make_pair(tmp_path / "gateway.key").public.hex(), "")
    assert keys() == ("ok", "gateways that are authorised: 1")
    authorized.write_text("nonsense")
    assert keys()[0] == "failure"
