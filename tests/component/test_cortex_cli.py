"""The fleet's command line against a scripted gateway: what it sends, what it prints, how it ends."""

import sys
from collections.abc import Callable, Iterator
from http.server import HTTPServer
from pathlib import Path

import msgspec
import orjson
import pytest

from common import revision
from cortex.__main__ import main
from tests.support.fake_neuron import MODEL, node_state
from tests.support.harness import free_port
from tests.support.scripted_server import QuietHandler, serving

FLEET = {
    "nodes": [
        {"name": "beast", "endpoint": "beast:13131", "link": "up", "error": None, "state": node_state()},
        {"name": "benjy", "endpoint": "benjy:13131", "link": "down", "error": "nobody answers", "state": None},
    ],
    "models": [{"id": MODEL, "status": {"value": "loaded"}, "meta": {"n_ctx": 1000}}],
}


class Script(HTTPServer):
    """Answers every GET with `status` and `body`, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body = 200, msgspec.json.encode(FLEET)
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(QuietHandler):
    """One request to the scripted gateway."""

    server: Script

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)


@pytest.fixture
def gateway() -> Iterator[Script]:
    with serving(Script()) as server:
        yield server


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run cortex in this process; return its exit status."""
    for name in ("COLUMNS", "CORTEX_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments])
        return main()

    return run


def test_status_shows_nodes_devices_models_and_what_is_wrong(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("status", "--url", gateway.url + "/") == 0
    out = capsys.readouterr().out
    assert "beast at beast:13131: up, neuron 0, serving" in out
    assert "dev-0" in out
    assert "benjy at benjy:13131: down: nobody answers" in out
    assert MODEL in out
    assert gateway.asked == [("/fleet/status", None)]


def test_status_names_the_engine_of_each_node_and_warns_of_a_bus_in_plain_text(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("status", "--url", gateway.url) == 0
    assert "plain text" not in capsys.readouterr().out
    node = {"name": "beast", "endpoint": "beast:13131", "link": "up"}
    states = node_state(build="llama-cpp-python 0.3.36", exposed=True)
    gateway.body = msgspec.json.encode({"nodes": [node | {"state": states}], "models": []})
    assert cortex("status", "--url", gateway.url) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "beast at beast:13131: up, neuron 0, serving, llama-cpp-python 0.3.36"
    assert second.startswith("  warning: its bus is plain text")


def test_json_is_what_the_gateway_said(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.body = orjson.dumps({"object": "list", "data": [{"id": "a", "from": "the future"}]})
    assert cortex("models", "--url", gateway.url, "--json") == 0
    assert orjson.loads(capsys.readouterr().out) == orjson.loads(gateway.body)


def test_the_key_is_taken_from_the_environment_before_the_configuration(
    gateway: Script, cortex: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "cortex.yaml"
    config.write_text(f"gateway: {{listen: '0.0.0.0:{gateway.server_port}', admin_keys: [from-the-configuration]}}")
    assert cortex("status", "--config", str(config)) == 0
    monkeypatch.setenv("CORTEX_ADMIN_KEY", "from-the-environment")
    assert cortex("status", "--config", str(config)) == 0
    assert [key for _, key in gateway.asked] == ["Bearer from-the-configuration", "Bearer from-the-environment"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "set gateway.admin_keys"),
        (401, "set CORTEX_ADMIN_KEY"),
        (403, "set CORTEX_ADMIN_KEY"),
        (502, "answers 502"),
    ],
)
def test_a_refusal_comes_with_the_remedy(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], status: int, words: str
) -> None:
    gateway.status, gateway.body = status, b"{}"
    assert cortex("status", "--url", gateway.url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "models"])
@pytest.mark.parametrize("body", [b"<html>It works!</html>", b"", b"[]", b'{"data": 1}', b'{"nodes": [{}]}', b"\xff"])
def test_what_is_no_gateway_is_said_to_be_none(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], command: str, body: bytes
) -> None:
    gateway.body = body
    assert cortex(command, "--url", gateway.url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"what answers at {gateway.url} is no gateway" in err


def test_nobody_answering_is_one_line_and_exit_status_3(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("models", "--url", f"http://127.0.0.1:{free_port()}") == 3
    err = capsys.readouterr().err
    assert "no gateway answers at" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("url", ["beast:31313", "nonsense", "http://beast:x", "ftp://beast"])
def test_what_is_no_url_is_said_to_be_none(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert cortex("models", "--url", url) == 1
    assert f"--url: '{url}' is no URL" in capsys.readouterr().err


def test_a_key_that_no_header_can_carry_is_refused(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_ADMIN_KEY", "…")
    assert cortex("status") == 1
    assert "CORTEX_ADMIN_KEY" in capsys.readouterr().err


def test_serve_without_any_configuration_names_where_it_looked(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cortex.__main__.DEFAULT_CONFIGS", (str(tmp_path / "a.yaml"), str(tmp_path / "b.toml")))
    assert cortex("serve") == 1
    err = capsys.readouterr().err
    assert "a.yaml nor" in err
    assert "use --config FILE" in err


def test_version_is_a_command_and_an_option(cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cortex("version") == 0
    with pytest.raises(SystemExit):
        cortex("--version")
    assert capsys.readouterr().out == revision.describe("cortex") + "\n" + revision.describe("cortex") + "\n"


def test_nodes_have_a_line_each(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("nodes", "--url", gateway.url) == 0
    header, beast, benjy, reason = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "NODE"
    assert beast.split()[:4] == ["beast", "beast:13131", "up,", "serving"]
    assert benjy.split()[:3] == ["benjy", "benjy:13131", "down"]
    assert reason == "  benjy: nobody answers"


def test_watching_goes_on_past_a_silence_until_it_is_stopped(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([200, 503, 200])

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        status = next(turns, None)
        if status is None:
            raise KeyboardInterrupt
        gateway.status = status

    monkeypatch.setattr("cortex.cli.fleet.time.sleep", sleep)
    assert cortex("status", "--watch", "0.5", "--url", gateway.url) == 0
    out, err = capsys.readouterr()
    assert out.count("beast at beast:13131") == 3
    assert "answers 503" in err
