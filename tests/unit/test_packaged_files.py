"""What is shipped is what the programs accept."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from common.catalogue import load_catalogue
from common.errors import ConfigError
from cortex import __main__ as cortex_main
from cortex.settings import load_settings as load_gateway
from neuron.ctl.__main__ import DEFAULT_SOCKET
from neuron.settings import SOCKET_NAME
from neuron.settings import load_settings as load_neuron

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", ["examples/cortex.toml", "rpm/etc/cortex.yaml"])
def test_a_shipped_gateway_configuration_is_accepted(file: str) -> None:
    assert load_gateway(ROOT / file).neurons


@pytest.mark.parametrize("file", ["examples/neuron.yaml", "rpm/etc/neuron.yaml"])
def test_a_shipped_neuron_configuration_is_accepted(file: str) -> None:
    assert load_neuron(ROOT / file).endpoint.port == 13131


def test_the_packaged_neuron_says_in_so_many_words_that_it_is_for_a_trusted_network(tmp_path: Path) -> None:
    lines = (ROOT / "rpm/etc/neuron.yaml").read_text().splitlines()
    assert {"listen: tcp://0.0.0.0:13131", "security: plaintext   # trusted network only"} <= set(lines)
    assert load_neuron(ROOT / "rpm/etc/neuron.yaml").is_exposed
    encrypted = tmp_path / "neuron.yaml"
    encrypted.write_text("\n".join(line for line in lines if not line.startswith("security:")))
    assert not load_neuron(encrypted).is_exposed


def test_what_neuronctl_pulls_lies_where_the_service_looks_and_may_write() -> None:
    assert "CacheDirectory=neuron" in (ROOT / "systemd/neuron.service").read_text().splitlines()
    assert (load_neuron(ROOT / "rpm/etc/neuron.yaml").hub_cache or "").startswith("/var/cache/neuron/")


def test_the_service_may_write_who_joins_by_invitation_and_answers_at_neuronctls_default_address() -> None:
    unit = (ROOT / "systemd/neuron.service").read_text().splitlines()
    keys = f"/etc/neuron/{load_neuron(ROOT / 'rpm/etc/neuron.yaml').keys_dir}"
    assert f"ReadWritePaths=-{keys}" in unit
    assert f"d {keys} 0750 neuron neuron" in (ROOT / "systemd/neuron.tmpfiles").read_text().splitlines()
    assert "RuntimeDirectory=neuron" in unit
    assert f"/run/neuron/{SOCKET_NAME}" == DEFAULT_SOCKET
    spec = (ROOT / "rpm/helexa-neuron.spec").read_text()
    assert "%{_bindir}/neuron keygen" in spec.split("%post\n")[1].split("%preun")[0]  # a key is made at install
    assert "%dir %attr(0750,neuron,neuron) %{_sysconfdir}/neuron/keys\n" in spec


def test_the_shipped_models_file_is_accepted() -> None:
    assert load_catalogue(ROOT / "examples/models.yaml").models


def test_every_push_is_checked_and_a_tag_makes_source_packages_of_all_specs() -> None:
    def workflow(name: str) -> tuple[object, str]:
        content = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
        steps = [step for job in content["jobs"].values() for step in job["steps"]]
        return content[True], "\n".join(step.get("run", "") for step in steps)  # YAML 1.1 takes `on` for a truth value

    triggers, runs = workflow("check.yml")
    assert "push" in triggers  # type: ignore[operator]
    assert "bash .ci/run" in runs
    assert {"make test", "make test-all"} <= set((ROOT / ".ci/run").read_text().splitlines())
    triggers, runs = workflow("release.yaml")
    assert triggers == {"push": {"tags": ["v*"]}}
    assert "make vendor srpm" in runs


def test_the_firewall_files_open_the_ports_of_the_shipped_configurations() -> None:
    def port(name: str) -> int:
        element = ET.parse(ROOT / f"systemd/{name}.firewalld.xml").find("port")
        assert element is not None
        return int(element.attrib["port"])

    assert port("cortex") == load_gateway(ROOT / "rpm/etc/cortex.yaml").listen.port
    assert port("neuron") == load_neuron(ROOT / "rpm/etc/neuron.yaml").endpoint.port
    metrics = load_gateway(ROOT / "examples/cortex.toml").gateway.metrics_listen
    assert metrics is not None
    assert metrics.endswith(f":{port('cortex-metrics')}")


@pytest.mark.parametrize("unit", ["cortex", "neuron"])
def test_each_exception_from_the_hardening_is_explained_beside_its_line(unit: str) -> None:
    lines = (ROOT / f"systemd/{unit}.service").read_text().splitlines()
    loosened = re.compile(
        r"(MemoryDenyWriteExecute|PrivateDevices|PrivateUsers)=no|ProcSubset=all|ProtectProc=default"
        r"|ReadWritePaths=|RestrictAddressFamilies=|SystemCallFilter=(~@privileged$|sched_)"
    )
    for before, line in pairwise(lines):
        if loosened.match(line):
            assert before.startswith("# Exception: "), f"{line} has no reason"


@pytest.mark.parametrize("unit", ["cortex", "neuron"])
def test_a_unit_tells_the_supervising_process_only_to_stop(unit: str) -> None:
    lines = (ROOT / f"systemd/{unit}.service").read_text().splitlines()
    assert {"Type=notify", "KillMode=mixed", "LimitCORE=0", "Restart=on-failure"} <= set(lines)


def test_two_configuration_files_are_an_error_that_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple(str(tmp_path / f) for f in ("cortex.toml", "cortex.yaml"))
    monkeypatch.setattr(cortex_main, "DEFAULT_CONFIGS", files)
    for file in files:
        Path(file).touch()
    with pytest.raises(ConfigError, match=r"cortex\.toml and .*cortex\.yaml exist"):
        cortex_main.find_config()
    Path(files[0]).unlink()
    assert cortex_main.find_config() == Path(files[1])
