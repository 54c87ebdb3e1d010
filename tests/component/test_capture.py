"""Requests that are kept on disk, and what cortex capture and replay make of them."""

import asyncio
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon.testing
import msgspec
import orjson
import pytest

from common.errors import Code, ConfigError, RequestError
from common.messages import Job, RenderedItem
from cortex.__main__ import main
from cortex.access.access import Access
from cortex.api.status import Lifecycle
from cortex.app import create_app
from cortex.capture.store import HIDDEN, Captured, Store
from cortex.cli.captures import said
from cortex.settings import CortexSettings
from tests.support.fake_fleet import MODEL, FakeFleet, Scripted, answer, begun, done

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "my key is sk-live-0123456789abcdef"}]}


def script(job: Job) -> list[Scripted]:
    """Render a prompt, or answer."""
    if job.answer == "prompt":
        return [RenderedItem(job=job.id, attempt=0, text="<|user|>rendered", tokens=[1])]
    return [begun(7, 3), "<think>hm</think>", "Hel", "lo", done(3)]


class Side:
    """An application that keeps what it serves."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder, keep=3, expire_s=60.0)
        self.store.open()
        self.fleet = FakeFleet()
        self.fleet.script = script
        self.app = create_app(CortexSettings(), self.fleet, Access(), Lifecycle(), capture=self.store)

    def post(self, body: dict[str, Any], *, path: str = "/v1/chat/completions") -> bytes:
        """Send a request as the server does, and wait until it is kept; return what was sent back."""

        async def main() -> bytes:
            sent: list[bytes] = []
            scope = falcon.testing.create_scope(path=path, method="POST", headers={"x-request-id": "req-1"})

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": orjson.dumps(body), "more_body": False}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message.get("body", b""))

            await self.app(scope, receive, send)
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
            return b"".join(sent)

        return asyncio.run(main())


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "captures")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_kept_with_prompt_raw_text_and_reply(side: Side, stream: bool) -> None:
    sent = side.post({**BODY, "stream": stream})
    (captured,) = side.store.all()
    (job,) = captured.jobs
    assert (job.prompt, job.raw) == ("<|user|>rendered", "<think>hm</think>Hello")
    assert (job.prompt_tokens, job.cached_tokens, job.tokens, job.reason) == (7, 3, 3, "stop")
    assert captured.reply.encode() == sent
    assert (captured.id, captured.status, captured.outcome, captured.model) == ("req-1", 200, "ok", MODEL)
    assert "Hello" in said(captured.reply)


def test_what_looks_like_a_key_is_hidden_and_only_the_owner_may_read(side: Side) -> None:
    side.post(BODY)
    (file,) = side.store.folder.iterdir()
    assert "sk-live" not in file.read_text()
    assert HIDDEN in side.store.all()[0].request
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(side.store.folder.stat().st_mode)) == (0o600, 0o700)
    side.store.folder.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        side.store.open()


def test_a_failed_request_is_kept_with_its_error_and_one_that_ran_nothing_is_not(side: Side) -> None:
    side.fleet.script = lambda job: [RequestError(Code.NO_CAPACITY, "full")]
    side.post(BODY)
    side.post({**BODY, "model": "nope"})
    side.post(BODY, path="/v1/nothing")
    (captured,) = side.store.all()
    assert (captured.outcome, captured.status) == ("no_capacity", 503)
    assert captured.jobs[0].prompt is None


def test_old_ones_go_by_number_and_by_age(side: Side) -> None:
    for _ in range(5):
        side.post(BODY)
        time.sleep(0.002)
    files = sorted(side.store.folder.iterdir())
    assert len(files) == 3
    os.utime(files[0], (1, 1))
    side.store.sweep()
    assert len(side.store.all()) == 2
    assert side.store.clear() == 2
    assert side.store.all() == []


@pytest.mark.parametrize(
    "reply",
    [
        '{"choices":[{"message":{"content":"Hi","role":"assistant"}}],"id":"x"}',
        'data: {"choices":[{"delta":{"content":"H"}}]}\n\n'
        'data: {"choices":[{"delta":{"content":"i"}}]}\n\ndata: [DONE]',
        '{"content":[{"type":"text","text":"Hi"}]}',
        'data: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
        'data: {"type":"response.output_text.done","text":"Hi"}',
    ],
)
def test_words_are_found_in_every_dialect_whole_or_streamed(reply: str) -> None:
    assert said(reply) == "Hi"


@pytest.fixture
def cortex(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run cortex on the configuration of a gateway that keeps requests."""
    config = tmp_path / "cortex.yaml"
    config.write_text("gateway: {listen: '127.0.0.1:1'}\ncapture: {folder: captures}\n")
    monkeypatch.delenv("CORTEX_ADMIN_KEY", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments, "--config", str(config)])
        return main()

    return run


def test_kept_requests_are_listed_shown_and_removed(
    side: Side, cortex: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cortex("capture") == 0
    assert capsys.readouterr().out == "no requests are kept\n"
    side.post(BODY)
    assert cortex("capture") == 0
    assert "req-1" in capsys.readouterr().out
    assert cortex("capture", "show", "req-1") == 0
    out = capsys.readouterr().out
    assert "== prompt, 7 tokens, 3 cached ==\n<|user|>rendered" in out
    assert "as the model wrote it, 3 tokens, stop ==\n<think>hm</think>Hello" in out
    assert cortex("capture", "show", "nope") == 1
    assert "no request 'nope' is kept" in capsys.readouterr().err
    assert cortex("replay", "req-1") == 3
    assert cortex("capture", "clear") == 0
    assert capsys.readouterr().out == "1 requests removed\n"


def test_nothing_is_kept_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cortex.yaml"
    config.write_text("neurons: []\n")
    monkeypatch.setattr(sys, "argv", ["cortex", "capture", "--config", str(config)])
    assert main() == 1
    assert "set capture.folder" in capsys.readouterr().err


def test_an_answer_without_a_stop_keeps_what_came(side: Side) -> None:
    side.fleet.script = lambda job: (
        answer("x") if job.answer == "prompt" else [begun(), "half", RequestError(Code.WORKER_DIED, "x")]
    )
    side.post({**BODY, "stream": True})
    (captured,) = side.store.all()
    assert (captured.jobs[0].raw, captured.jobs[0].reason, captured.outcome) == ("half", None, "worker_died")
    assert msgspec.to_builtins(captured)["path"] == "/v1/chat/completions"
    assert isinstance(captured, Captured)
