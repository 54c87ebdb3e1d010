"""cortex chat, bench, setup and report against a scripted gateway."""

import io
import re
import stat
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.errors import ConfigError
from cortex.__main__ import main
from cortex.cli import chat, clients, report
from tests.support.scripted_server import QuietHandler, serving

MODELS = [
    {"id": "org/big", "status": {"value": "unloaded"}, "meta": {"n_ctx": 131072}, "capabilities": ["chat", "tools"]},
    {"id": "small", "status": {"value": "loaded"}, "meta": {"n_ctx": 8192}, "capabilities": ["chat", "vision"]},
    {"id": "vectors", "status": {"value": "loaded"}, "capabilities": ["embeddings"]},
]
SECRET = "sk-cortex-00000000-" + "a" * 48


class Typed(io.StringIO):
    """What comes from the keyboard or a pipe."""

    is_terminal = False

    def isatty(self) -> bool:
        """Say which of them it is."""
        return self.is_terminal


class Script(ThreadingHTTPServer):
    """Streams `pieces` to every chat, and lists the models."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pieces: list[str] = ["Hel", "lo \x1b]0;owned\x07world"]
        self.error: str | None = None
        self.is_cut = False
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(QuietHandler):
    """One request."""

    server: Script

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        known = self.path != "/fleet/live"
        self.send_response(200 if known else 404)
        self.end_headers()
        if known:
            self.wfile.write(orjson.dumps({"data": MODELS, "note": f"the key is {SECRET}"}))

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if body["model"] == "nope":
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error":{"message":"the model does not exist"}}')
            return
        self.send_response(200)
        self.end_headers()
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"reasoning_content": "hmm"}}]}]
        chunks += [{"choices": [{"delta": {"content": piece}}]} for piece in self.server.pieces]
        if self.server.error is not None:
            chunks.append({"error": {"message": self.server.error}})
        usage = {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
        chunks += [{"choices": [{"delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        for chunk in chunks:
            self.wfile.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        if not self.server.is_cut:
            self.wfile.write(b": ping\n\ndata: [DONE]\n\n")


@pytest.fixture
def gateway() -> Iterator[Script]:
    with serving(Script()) as server:
        yield server


@pytest.fixture
def cortex(gateway: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run cortex in this process, with a home of its own; return its exit status."""
    for name in ("CORTEX_ADMIN_KEY", "CORTEX_API_KEY", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: str, typed: str = "") -> int:
        monkeypatch.setattr(sys, "stdin", Typed(typed))
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments, "--url", gateway.url])
        return main()

    return run


def test_one_message_gives_one_answer_that_no_terminal_obeys(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("chat", "small", "hi", "there", "--system", "be brief", "--max-tokens", "5") == 0
    assert capsys.readouterr().out == "Hello ]0;ownedworld\n"
    (body,) = gateway.bodies
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi there"}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("small", 5, True)
    assert "temperature" not in body
    assert cortex("chat", "small", typed="from a pipe") == 0
    assert gateway.bodies[-1]["messages"] == [{"role": "user", "content": "from a pipe"}]
    capsys.readouterr()
    assert cortex("chat", "small", "hi", "--json") == 0
    row = orjson.loads(capsys.readouterr().out)
    assert (row["tokens"], row["usage"]["prompt_tokens"]) == (7, 9)
    assert row["ttft_s"] >= 0


def test_a_conversation_remembers_changes_its_model_and_says_how_fast_it_was(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["one", "two", "/model org/big", "/new", "three", "/help", "", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(Typed, "is_terminal", True)
    assert cortex("chat", "small") == 0
    out = capsys.readouterr().out
    assert "7 tokens" in out
    assert "prompt 9, 4 cached, cut off" in out
    first, second, third = gateway.bodies
    assert [m["content"] for m in second["messages"]] == ["one", "Hello ]0;ownedworld", "two"]
    assert (third["model"], [m["content"] for m in third["messages"]]) == ("org/big", ["three"])
    assert len(first["messages"]) == 1


@pytest.mark.parametrize(
    ("error", "is_cut", "words"), [("the worker died", False, "the worker died"), (None, True, "ended before")]
)
def test_a_failure_in_mid_stream_is_no_answer(
    gateway: Script,
    cortex: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    error: str,
    is_cut: bool,
    words: str,
) -> None:
    gateway.error, gateway.is_cut = error, is_cut
    assert cortex("chat", "small", "hi") == 1
    assert words in capsys.readouterr().err


def test_a_refusal_is_one_line(cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cortex("chat", "nope", "hi") == 1
    assert capsys.readouterr().err.strip() == "cortex: the model does not exist"


def test_text_for_a_terminal_keeps_letters_of_all_languages() -> None:
    assert chat.printable("añ日\n\t😀\x9b31m\x00\x7f") == "añ日\n\t😀31m"


def test_a_bench_has_a_row_for_each_number_of_clients_and_no_prompt_twice(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("bench", "small", "--clients", "1,3", "--requests", "2", "--prompt-words", "10") == 0
    header, one, three = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["CLIENTS", "REQUESTS", "FAILED"]
    assert one.split()[:3] == ["1", "2", "0"]
    assert three.split()[:3] == ["3", "6", "0"]
    prompts = [b["messages"][0]["content"] for b in gateway.bodies]
    assert len(set(prompts)) == len(prompts) == 9
    assert {len(p.split()) for p in prompts} == {10}
    assert cortex("bench", "small", "--clients", "2", "--json") == 0
    (row,) = orjson.loads(capsys.readouterr().out)
    assert (row["tokens"], row["requests"]) == (56, 8)
    assert row["ttft_ms"]["p50"] <= row["ttft_ms"]["p99"]


def test_a_bench_whose_requests_fail_says_so(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("bench", "nope") == 1
    assert "does not exist" in capsys.readouterr().err


def test_what_is_printed_for_each_client_is_what_it_can_read(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(client: str, *more: str) -> str:
        assert cortex("setup", client, *more) == 0
        return capsys.readouterr().out

    claude = orjson.loads(printed("claude"))["env"]
    assert (claude["ANTHROPIC_BASE_URL"], claude["ANTHROPIC_MODEL"]) == (gateway.url, "small")
    codex = tomllib.loads(printed("codex", "--model", "org/big"))
    assert (codex["model"], codex["model_context_window"]) == ("org/big", 131072)
    provider = codex["model_providers"][codex["model_provider"]]
    assert (provider["base_url"], provider["wire_api"]) == (f"{gateway.url}/v1", "responses")
    assert "env_key" not in provider
    zed = orjson.loads(printed("zed"))
    models = zed["language_models"]["openai_compatible"]["helexa"]["available_models"]
    assert {m["name"]: m["max_tokens"] for m in models} == {"org/big": 131072, "small": 8192}
    assert [m["capabilities"]["images"] for m in models] == [False, True]
    opencode = orjson.loads(printed("opencode"))
    assert opencode["model"] == "helexa/small"
    assert opencode["provider"]["helexa"]["models"]["org/big"]["limit"]["context"] == 131072


def test_a_key_goes_where_the_client_reads_it(
    gateway: Script, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("setup", "claude", "--key", SECRET) == 0
    assert orjson.loads(capsys.readouterr().out)["env"]["ANTHROPIC_AUTH_TOKEN"] == SECRET
    assert gateway.asked[-1] == ("/v1/models", f"Bearer {SECRET}")
    assert cortex("setup", "codex", "--key", SECRET) == 0
    out, err = capsys.readouterr()
    assert tomllib.loads(out)["model_providers"]["helexa"]["env_key"] == "HELEXA_API_KEY"
    assert SECRET not in out + err
    assert cortex("setup", "opencode", "--key", SECRET) == 0
    assert SECRET not in capsys.readouterr().out


def test_written_settings_are_merged_after_a_backup(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / ".config/opencode/opencode.json"
    file.parent.mkdir(parents=True)
    before = b'{"theme": "dark", "provider": {"other": {"x": 1}, "helexa": {"models": {"gone": {}}}}}'
    file.write_bytes(before)
    assert cortex("setup", "opencode", "--write") == 0
    after = orjson.loads(file.read_bytes())
    assert (after["theme"], after["provider"]["other"]) == ("dark", {"x": 1})
    assert set(after["provider"]["helexa"]["models"]) == {"org/big", "small"}
    (backup,) = file.parent.glob("*.bak")
    assert backup.read_bytes() == before
    assert backup.name in capsys.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cortex("setup", "codex", "--write") == 0
    assert tomllib.loads((tmp_path / ".codex/helexa.config.toml").read_text())["model"] == "small"


def test_settings_with_comments_keep_them(cortex: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / ".config/zed/settings.json"
    file.parent.mkdir(parents=True)
    file.write_text('// Zed settings\n{\n  "theme": "x", // mine\n  "agent": {"dock": "left",},\n}\n')
    assert cortex("setup", "zed", "--write") == 0
    text = file.read_text()
    assert text.startswith('// Zed settings\n{\n  "theme": "x", // mine\n  "agent": {"dock": "left",')
    plain = re.sub(r"(?m)^// Zed.*$|// mine$|,(?=\s*[}])", "", text)
    assert orjson.loads(plain)["agent"] == {"dock": "left", "default_model": {"provider": "helexa", "model": "small"}}
    again = text
    assert cortex("setup", "zed", "--write") == 0
    assert file.read_text() == again


def test_a_file_that_is_no_json_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    for text, words in (("{torn", "line 1"), ("[1]", "object")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            clients.write(file, {"a": 1})
        assert [p.read_text() for p in tmp_path.iterdir()] == [text]


def test_a_model_that_is_not_there_is_named_with_those_that_are(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("setup", "zed", "--model", "vectors") == 1
    assert "no model 'vectors' that can chat; there are: org/big, small" in capsys.readouterr().err


def test_a_report_holds_states_and_no_secrets(
    cortex: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "cortex.yaml"
    config.write_text("gateway:\n  admin_keys: [an-admin-key-of-some-length]\nneurons: []\n")
    file = tmp_path / "r.tar.gz"
    assert cortex("report", "-o", str(file), "--config", str(config)) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as archive:
        parts = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert {"cortex-report/versions.json", "cortex-report/fleet.json", "cortex-report/configuration.json"} <= set(parts)
    everything = b"".join(parts.values())
    assert b"an-admin-key" not in everything
    assert SECRET.encode() not in everything
    assert orjson.loads(parts["cortex-report/configuration.json"])["gateway"]["admin_keys"] == report.HIDDEN
    assert parts["cortex-report/live.txt"] == b"status 404\n"
    assert cortex("report", "-o", str(file)) == 1
    assert "cannot be written" in capsys.readouterr().err
