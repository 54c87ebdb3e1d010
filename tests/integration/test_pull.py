"""neuronctl pull, models ls --disk, rm and prune, against a hub on loopback."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest

from tests.support.gguf_files import write_sharded, write_tiny
from tests.support.harness import ROOT, Gateway, Neuron
from tests.support.hub import TOKEN, Hub

REPO = "org/tiny-GGUF"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("repository")
    parts = write_sharded(folder / "Q8_0", "tiny-Q8_0")
    files = {f"Q8_0/{p.name}": p.read_bytes() for p in parts}
    files["tiny-Q4_K_M.gguf"] = write_tiny(folder / "tiny-Q4_K_M.gguf").read_bytes()
    files["mmproj-tiny-f16.gguf"] = b"not wanted"
    files["README.md"] = b"# tiny"
    return files


@pytest.fixture
def hub(contents: dict[str, bytes]) -> Iterator[Hub]:
    with Hub({REPO: dict(contents)}) as started:
        yield started


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "neuron.ctl", "--endpoint", "127.0.0.1:1", "--timeout", "0.2", *arguments]


def environment(hub: Hub, cache: Path, token: str | None = None) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NEURON_"))}
    return {**plain, **hub.environment(cache, token)}


def ctl(hub: Hub, cache: Path, *arguments: str, token: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env=environment(hub, cache, token), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_all_parts_come_are_checked_and_are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    done = ctl(hub, cache, "pull", f"hf:{REPO}:Q8_0", "--json")
    assert done.returncode == 0, done.stderr
    assert "3 files" in done.stderr
    reply = json.loads(done.stdout)
    for path, (name, content) in zip(reply["files"], sorted(hub.repositories[REPO].items()), strict=False):
        assert (path.endswith(name), Path(path).read_bytes()) == (True, content)
    assert reply["size_bytes"] == reply["fetched_bytes"] > 0
    again = ctl(hub, cache, "pull", f"hf:{REPO}:Q8_0")
    assert "complete, was already here" in again.stdout
    assert f"source: hf:{REPO}:Q8_0" in again.stdout
    assert sorted(name for name, _ in hub.transfers) == sorted(n for n in hub.repositories[REPO] if "Q8_0" in n)
    listed = json.loads(ctl(hub, cache, "models", "ls", "--disk", "--json").stdout)
    assert [(m["id"], len(m["files"]), m["repo"], m["problem"]) for m in listed] == [("tiny-q8_0", 3, REPO, None)]


def test_a_pull_that_was_killed_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    size = len(hub.repositories[REPO]["tiny-Q4_K_M.gguf"])
    hub.stop_at = size // 2
    cache = tmp_path / "hub"
    with subprocess.Popen(
        command("pull", f"hf:{REPO}"), env=environment(hub, cache), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    ) as first:  # fmt: skip
        assert hub.stopped.wait(30)
        first.kill()
    hub.go_on.set()
    # A killed process takes along what it had not yet written, so that the rest of the half is made certain here.
    [incomplete] = cache.glob("models--*/blobs/*.incomplete")
    incomplete.write_bytes(hub.repositories[REPO]["tiny-Q4_K_M.gguf"][: size // 2])
    done = ctl(hub, cache, "pull", f"hf:{REPO}")
    assert done.returncode == 0, done.stderr
    assert hub.transfers[-1] == ("tiny-Q4_K_M.gguf", f"bytes={size // 2}-")
    assert len(list(cache.glob("models--*/blobs/*"))) == 1


def test_a_file_with_a_wrong_checksum_is_removed_and_said(hub: Hub, tmp_path: Path) -> None:
    hub.claimed_sums["tiny-Q4_K_M.gguf"] = "0" * 64
    done = ctl(hub, tmp_path / "hub", "pull", f"hf:{REPO}")
    assert (done.returncode, "another checksum" in done.stderr) == (1, True)
    assert ctl(hub, tmp_path / "hub", "models", "--disk").stdout == "no models\n"
    assert not list((tmp_path / "hub").glob("models--*/blobs/*"))


def test_too_little_room_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.claimed_sizes["tiny-Q4_K_M.gguf"] = 2**60
    done = ctl(hub, tmp_path / "hub", "pull", f"hf:{REPO}")
    assert done.returncode == 1
    assert "needs 1152921504.6 GB more" in done.stderr
    assert hub.transfers == []


def test_a_gated_repository_wants_its_terms_accepted_and_takes_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add(REPO)
    refused = ctl(hub, tmp_path / "hub", "pull", f"hf:{REPO}")
    assert (refused.returncode, "accept the terms at" in refused.stderr, "HF_TOKEN" in refused.stderr) == (
        1,
        True,
        True,
    )
    assert ctl(hub, tmp_path / "hub", "pull", f"hf:{REPO}", token=TOKEN).returncode == 0


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hf:org/absent", "no such repository"),
        (f"hf:{REPO}:Q6_K", f"name one of: {REPO}:Q4_K_M, {REPO}:Q8_0"),
        ("org/tiny", "write hf:ORG/REPO"),
    ],
)
def test_what_is_not_there_is_refused_with_the_choices(hub: Hub, tmp_path: Path, reference: str, words: str) -> None:
    done = ctl(hub, tmp_path / "hub", "pull", reference)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    done = ctl(Hub(url="http://127.0.0.1:1"), tmp_path / "hub", "pull", f"hf:{REPO}")
    assert done.returncode == 1
    assert "http://127.0.0.1:1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_rm_frees_the_disk_of_one_quantisation_and_keeps_the_other(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    for quant in ("Q8_0", "Q4_K_M"):
        assert ctl(hub, cache, "pull", f"hf:{REPO}:{quant}").returncode == 0
    unsure = ctl(hub, cache, "models", "rm", "tiny-q8_0")
    assert (unsure.returncode, "say --yes" in unsure.stderr) == (1, True)
    assert len(list(cache.glob("models--*/blobs/*"))) == 4
    gone = ctl(hub, cache, "models", "rm", f"hf:{REPO}:Q8_0", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert len(list(cache.glob("models--*/blobs/*"))) == 1
    unknown = ctl(hub, cache, "models", "rm", "tiny-q8_0", "--yes")
    assert "there are: tiny-q4_k_m" in unknown.stderr


def test_prune_removes_given_up_downloads_and_old_snapshots_of_gguf_repositories_only(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    assert ctl(hub, cache, "pull", f"hf:{REPO}").returncode == 0
    folder = cache / "models--org--tiny-GGUF"
    old = folder / "snapshots" / ("b" * 40)
    old.mkdir()
    (folder / "blobs" / "old").write_bytes(b"x" * 1000)
    (old / "old.gguf").symlink_to(folder / "blobs" / "old")
    stale, fresh = folder / "blobs" / "1.incomplete", folder / "blobs" / "2.incomplete"
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (0, time.time() - 7200))
    foreign = cache / "models--org--bert" / "snapshots" / ("c" * 40)
    foreign.mkdir(parents=True)
    (foreign / "model.safetensors").write_bytes(b"x")
    done = ctl(hub, cache, "models", "prune", "--yes")
    assert done.returncode == 0, done.stderr
    assert (old.exists(), stale.exists(), (folder / "blobs" / "old").exists()) == (False, False, False)
    assert fresh.exists()
    assert (foreign / "model.safetensors").exists()
    assert "tiny-q4_k_m" in ctl(hub, cache, "models", "ls", "--disk").stdout
    assert "nothing is left over" in ctl(hub, cache, "models", "prune").stdout


def test_presence_is_known_before_a_request_and_only_a_profile_that_says_so_is_fetched_for_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    for name, value in hub.environment(cache).items():
        monkeypatch.setenv(name, value)
    rows = [
        {"id": "never", "source": f"hf:{REPO}:Q4_K_M"},
        {"id": "wanted", "source": f"hf:{REPO}:Q8_0", "download": "on_demand"},
        {"id": "gone", "source": "file:/nowhere/gone.gguf"},
    ]
    with (
        Neuron(tmp_path / "n", hub_cache=str(cache)) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron], models={"models": rows}) as gateway,
        gateway.openai() as client,
    ):
        told = {"never": "downloadable", "wanted": "downloadable", "gone": "missing"}
        neuron.wait_for(lambda s: {m["id"]: m["presence"] for m in s["state"]["models"]} == told)
        for model, words in (("never", f"neuronctl pull hf:{REPO}:Q4_K_M"), ("gone", "no such file")):
            with pytest.raises(openai.APIStatusError, match=words):
                client.completions.create(model=model, prompt="a", max_tokens=2)
        assert hub.transfers == []

        hub.stop_at = 1000
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.completions.create, model="wanted", prompt="a", max_tokens=2)
            assert hub.stopped.wait(30)
            neuron.wait_for(lambda s: any(m["fetching"] is not None for m in s["state"]["models"]))
            hub.go_on.set()
            assert answer.result(60).usage is not None
        assert {name for name, _ in hub.transfers} == {n for n in hub.repositories[REPO] if "Q8_0" in n}
        status = neuron.status()["state"]["models"]
        assert next((m["presence"], m["fetching"]) for m in status if m["id"] == "wanted") == ("present", None)


def test_a_fetch_that_is_killed_ends_its_requests_with_the_reason(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    for name, value in hub.environment(cache).items():
        monkeypatch.setenv(name, value)
    row = {"id": "wanted", "source": f"hf:{REPO}:Q4_K_M", "download": "on_demand"}
    hub.stop_at = 1000
    with Neuron(tmp_path / "n", models=[row], hub_cache=str(cache)) as neuron:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(neuron.ctl, "load", "wanted")
            assert hub.stopped.wait(30)
            [fetch] = [p for p in psutil.Process(neuron.pid).children() if "neuron.models.fetch" in p.cmdline()]
            fetch.kill()
            done = loading.result(30)
        assert (done.returncode, "could not be fetched" in done.stderr, "SIGKILL" in done.stderr) == (1, True, True)
        hub.go_on.set()
        assert neuron.ctl("health").returncode == 0


def test_a_running_neuron_serves_what_was_pulled_and_keeps_what_is_loaded(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    profile = {"id": "mine", "source": f"hf:{REPO}:Q4_K_M"}
    with Neuron(tmp_path / "n", models=[profile], hub_cache=str(cache)) as neuron:
        missing = neuron.ctl("load", "mine")
        assert (missing.returncode, f"run: neuronctl pull hf:{REPO}:Q4_K_M" in missing.stderr) == (1, True)
        assert ctl(hub, cache, "pull", f"hf:{REPO}").returncode == 0
        assert ctl(hub, cache, "pull", f"hf:{REPO}:Q8_0").returncode == 0
        neuron.wait_for(lambda s: "tiny-q8_0" in {m["id"] for m in s["state"]["models"]})
        assert neuron.ctl("load", "tiny-q8_0").returncode == 0
        kept = neuron.ctl("models", "rm", "tiny-q8_0", "--yes", "--cache", str(cache))
        assert (kept.returncode, "is loaded; run: neuronctl unload tiny-q8_0" in kept.stderr) == (1, True)
        assert neuron.ctl("load", "mine").returncode == 0
