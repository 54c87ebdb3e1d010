"""The specs say what the rest of the source says, and the locks hold what setup.cfg asks for."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECS = ("cortex", "helexa-neuron", "helexa-engine")
PACKAGES = ("cortex-cli", "cortex", "helexa-acp", "helexa-neuron", "helexa-engine")


def spec(name: str) -> str:
    return (ROOT / f"rpm/{name}.spec").read_text()


def locked(name: str) -> dict[str, str]:
    """Return the versions in a lock, and in its list of sources."""
    found: dict[str, str] = {}
    for file in (ROOT / "rpm/lock").glob(f"{name}*.txt"):
        if file.stem in (name, f"{name}.source"):
            found.update(re.findall(r"^([a-z0-9-]+)==(\S+)", file.read_text(), re.MULTILINE))
    return found


def required(section: str, key: str) -> list[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line for line in config[section][key].splitlines() if line and not line.startswith("#")]
    return [re.split(r"[\[<>=]", line)[0] for line in lines]


@pytest.mark.parametrize("program", ["cortex", "neuron"])
def test_the_user_is_made_before_the_files_and_as_sysusers_says(program: str) -> None:
    text = spec({"neuron": "helexa-neuron"}.get(program, program))
    heredoc = re.search(r"^%pre\n.*<<'USERS'.*\n(?P<lines>(?:.+\n)+?)USERS$", text, re.MULTILINE)
    assert heredoc
    stated = (ROOT / f"systemd/{program}.sysusers").read_text().splitlines()
    assert heredoc["lines"].splitlines() == [line for line in stated if not line.startswith("#")]


@pytest.mark.parametrize("name", ["cortex", "helexa-neuron"])
def test_a_package_has_the_version_of_the_source_and_the_macros_of_systemd(name: str) -> None:
    text, unit = spec(name), name.removeprefix("helexa-")
    assert "\nVersion:        @VERSION@\n" in text
    for macro in ("systemd_post", "systemd_preun", "systemd_postun_with_restart"):
        assert f"%{macro} {unit}.service\n" in text
    assert re.search(rf"^%config\(noreplace\) %attr\(0640,root,{unit}\) ", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["cortex", "helexa-neuron"])
def test_a_build_runs_the_unit_tests_with_the_very_wheels_that_it_installs(name: str) -> None:
    check = spec(name).partition("\n%check\n")[2].partition("\n%pre\n")[0]
    assert check.strip() == "rpm/run-with build/stage %{__python3} -m pytest -q -p no:cacheprovider tests/unit"
    assert {"pytest", "hypothesis"} <= set(locked("check"))


def test_the_engine_has_the_version_that_pip_installs_and_one_of_those_that_neuron_takes() -> None:
    text = (ROOT / "setup.cfg").read_text()
    pin = re.search(r"llama-cpp-python==(\S+)", text)
    version = re.search(r"^Version: +(\S+)$", spec("helexa-engine"), re.MULTILINE)
    assert pin
    assert version
    assert version[1] == pin[1] == locked("helexa-engine")["llama-cpp-python"]
    assert f"helexa-engine%{{?_isa}} >= {pin[1]}" in spec("helexa-neuron")


def test_the_locks_hold_all_that_setup_cfg_asks_for() -> None:
    base = set(required("options", "install_requires"))
    extra = "options.extras_require"
    cli = base - {"agent-client-protocol"}
    assert cli <= set(locked("cortex-cli"))
    assert set(required(extra, "gateway")) <= set(locked("cortex-cli")) | set(locked("cortex"))
    assert (base - cli) | set(required(extra, "mcp")) <= set(locked("helexa-acp"))
    assert cli | set(required(extra, "neuron")) <= set(locked("helexa-neuron")) | set(locked("helexa-engine"))


def test_one_version_of_a_library_is_vendored_however_many_packages_hold_it() -> None:
    versions: dict[str, set[str]] = {}
    for package in PACKAGES:
        for name, version in locked(package).items():
            versions.setdefault(name, set()).add(version)
    assert {n: v for n, v in versions.items() if len(v) > 1} == {}


def test_the_packages_of_cortex_hold_nothing_twice() -> None:
    names = [n for p in ("cortex-cli", "cortex", "helexa-acp") for n in locked(p)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("file", sorted((ROOT / "rpm/lock").glob("*.txt")), ids=lambda f: str(f.stem))
def test_every_file_of_a_lock_is_named_by_its_digest(file: Path) -> None:
    text = re.sub(r" \\\n +", " ", file.read_text())
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert entries
    assert [e for e in entries if not re.fullmatch(r"[a-z0-9-]+==\S+( --hash=sha256:[0-9a-f]{64}){1,2}", e)] == []


@pytest.mark.parametrize("name", SPECS)
def test_what_a_spec_calls_and_copies_is_in_the_source(name: str) -> None:
    text = spec(name)
    for path in re.findall(r"(?<![\w/])((?:rpm|systemd|tools)/[\w./-]+)", text):
        assert (ROOT / path).exists() or "$" in path, path
    for source in re.findall(r"^Source\d+: +([a-z-]+\.txt|[\w.-]+\.(?:py|c))$", text, re.MULTILINE):
        assert (ROOT / "rpm/lock" / source).exists() or (ROOT / "rpm" / source).exists(), source
