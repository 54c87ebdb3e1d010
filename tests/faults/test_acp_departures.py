"""What is left when the agent crashes, its editor goes away, its endpoint falls silent, or a turn will not end."""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from acp import text_block

from cortex.acp import session as session_module
from cortex.acp.configuration import Endpoint
from cortex.acp.editor import Editor, run_locally
from cortex.acp.history import reply_entry, unpaired
from cortex.acp.message import Block
from cortex.acp.session import Session, Superseded
from cortex.acp.store import Entry, Store
from cortex.acp.upstream import Reply, Upstream
from tests.support.scripted_editor import WAIT_S, RpcError, ScriptedEditor, stall
from tests.support.scripted_upstream import Round, ScriptedUpstream

IS_LONG = bool(os.environ.get("HELEXA_LONG"))
PLACES = ("local command", "permission", *(("headers", "stream") if IS_LONG else ()))
KILLS = 1000 if IS_LONG else 2
BARE = {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": False}


def wait_for(is_true: Any, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def processes_of(marker: str) -> list[int]:
    """Return the processes that have a text in their command line."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any(marker in a for a in p.info["cmdline"] or ())]


def stalling(place: str, command: str) -> Round:
    match place:
        case "headers":
            return Round(stall="headers")
        case "stream":
            return Round("never comes to its end", stall="body", cut=300)
        case "local command":
            return Round("running", [("call_1", "bash", {"command": command})])
    return Round("asking", [("call_1", "write_file", {"path": "b.txt", "content": "b"})])


@pytest.mark.parametrize("place", PLACES)
def test_an_editor_that_goes_away_in_mid_turn_leaves_a_whole_history_and_no_process(tmp_path: Path, place: str) -> None:
    marker = f"sleep 60 # {tmp_path}"

    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url, capabilities=BARE) as editor:
            (editor.workspace / "a.txt").write_text("a")
            session = await editor.new()
            await editor.ask(
                "session/set_mode", sessionId=session, modeId="default" if place == "permission" else "bypass"
            )
            editor.on["session/request_permission"] = stall
            editor.prompt(session, "question")
            await asyncio.to_thread(upstream.wait_for_requests, 2)
            if place == "stream":
                await editor.wait_until(lambda: "never" in editor.said(), "the beginning of the stream")
            elif place == "local command":
                await asyncio.to_thread(wait_for, lambda: processes_of(marker), "the command runs")
            elif place == "permission":
                await editor.wait_asked("session/request_permission")
            assert await editor.disconnect() == 0
            history = editor.history(session)
            assert [e["role"] for e in history[:3]] == ["user", "assistant", "tool"]
            assert unpaired(history) == set()
            ends = {"headers": [], "stream": ["assistant"]}.get(place, ["assistant", "tool"])
            assert [e["role"] for e in history[3:]] == ends
            assert history[-1].get("partial", False) is (place == "stream")
            assert "prompt complete" in editor.log_file.read_text().splitlines()[-1]
        assert processes_of(marker) == []

    reading = Round("reading", [("call_0", "read_file", {"path": "a.txt"})])
    with ScriptedUpstream(reading, stalling(place, marker)) as upstream:
        asyncio.run(scenario(upstream))


def test_a_command_run_locally_and_what_it_has_started_end_with_a_killed_agent(tmp_path: Path) -> None:
    marker = f"sleep 60; : {tmp_path}"
    command = f"sh -c '{marker}' & sh -c '{marker}; true'"

    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url, capabilities=BARE) as editor:
            session = await editor.new()
            await editor.ask("session/set_mode", sessionId=session, modeId="bypass")
            editor.prompt(session, "run")
            await asyncio.to_thread(wait_for, lambda: len(processes_of(marker)) >= 3, "the commands run")
            await editor.kill()
        await asyncio.to_thread(wait_for, lambda: not processes_of(marker), "the commands end")

    with ScriptedUpstream(Round(calls=[("c", "bash", {"command": command})])) as upstream:
        asyncio.run(scenario(upstream))


@pytest.mark.parametrize(
    ("command", "output", "status"),
    [
        ("echo out; echo err >&2; exit 3", "out\nerr\n", 3),
        ("cat; echo read to the end", "read to the end\n", 0),
        ("jobs; ls /proc/self/fd | wc -l", "4\n", 0),
        ("kill -TERM $$", "", -15),
    ],
)
def test_a_local_command_sees_nothing_of_what_holds_it(command: str, output: str, status: int) -> None:
    ran = asyncio.run(run_locally(command, "/", 20))
    assert (ran.output, ran.status, ran.is_timed_out) == (output, status, False)


CRASH = """
import os, subprocess, sys
from cortex.acp import __main__, turn

async def crash(self, blocks):
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run(["sh", "-c", "echo from a child"], check=True)
    {how}

turn.Turn._run = crash
sys.exit(__main__.main())
"""
WAYS = {"raise RuntimeError('lost')": 0, "os.abort()": -6, **({"sys.exit('lost')": 1} if IS_LONG else {})}


@pytest.mark.parametrize(("how", "status"), WAYS.items())
def test_stdout_carries_messages_only_even_in_a_crash(tmp_path: Path, how: str, status: int) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        program = ("-c", CRASH.format(how=how))
        async with ScriptedEditor(tmp_path, upstream.url, program=program) as editor:
            session = await editor.new()
            answer = editor.prompt(session, "question")
            if status:
                assert await asyncio.wait_for(editor.process.wait(), WAIT_S) == status
            else:
                with pytest.raises(RpcError):
                    await asyncio.wait_for(answer, WAIT_S)
            assert [e["content"] for e in editor.history(session)] == ["question"]
        # Leaving has read stdout to its end: a line that is no message fails there.

    with ScriptedUpstream() as upstream:
        asyncio.run(scenario(upstream))


@pytest.mark.parametrize("place", ["stream", *(["headers"] if IS_LONG else [])])
def test_a_silent_endpoint_is_given_up_and_what_had_come_is_kept(tmp_path: Path, place: str) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url, HELEXA_ACP_IDLE_TIMEOUT_S="1") as editor:
            session = await editor.new()
            with pytest.raises(RpcError, match="nothing came for 1 s"):
                await asyncio.wait_for(editor.prompt(session, "go"), WAIT_S)
            kept = [e["content"] for e in editor.history(session) if e.get("partial")]
            assert [bool(text) for text in kept] == ([True] if place == "stream" else [])
            assert await editor.stop_reason(session, "again") == "end_turn"

    with ScriptedUpstream(stalling(place, "")) as upstream:
        asyncio.run(scenario(upstream))


def test_a_slow_reply_may_take_longer_than_the_idle_timeout() -> None:
    async def scenario(url: str) -> Reply:
        upstream, reply = Upstream(), Reply()
        endpoint = Endpoint("default", url, idle_timeout_s=2)
        async for _ in upstream.stream(endpoint, {"model": "m", "messages": []}, reply, lambda _: None):
            pass
        await upstream.close()
        return reply

    with ScriptedUpstream(Round("a slow but steady answer", pause_s=0.25)) as scripted:
        began = time.monotonic()
        assert asyncio.run(scenario(scripted.url)).text == "a slow but steady answer"
        assert time.monotonic() - began > 2.0


def test_a_turn_that_will_not_end_is_left_behind_and_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "UNWIND_S", 0.05)
    monkeypatch.setattr(session_module, "_NUDGE_S", 0.01)
    blocks: list[Block] = [text_block("q")]

    async def scenario() -> list[Entry]:
        store = Store(tmp_path)
        record = store.create(str(tmp_path), [])
        session = Session(record, store, cast(Editor, None))
        started, release, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def deaf(owner: object, entry: Entry) -> str:
            started.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            try:
                session.extend(owner, [reply_entry("too late", "", [])])
            except Superseded:
                refused.set()
            return "end_turn"

        async def prompt(owner: object, entry: Entry) -> str:
            session.extend(owner, [reply_entry("in time", "", [])])
            await session.save()
            return "end_turn"

        async with asyncio.timeout(WAIT_S):
            first = asyncio.create_task(session.prompt(blocks, deaf))
            await started.wait()
            assert await session.prompt(blocks, prompt) == "end_turn"
            assert await first == "cancelled"
            release.set()
            await refused.wait()
            await session.stop()
        return store.load(record.id).history

    history = asyncio.run(scenario())
    assert [e["content"] for e in history] == ["q", "q", "in time"]
    assert "turn does not end; left behind" in caplog.text


@pytest.mark.timeout(7200 if IS_LONG else 120)
def test_an_agent_killed_at_random_moments_goes_on_from_a_whole_file(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        session = ""
        messages: list[str] = []
        for number in range(KILLS):
            upstream.rounds[:] = [Round("x" * 5000, [("c", "list_dir", {})])] * 25
            async with ScriptedEditor(tmp_path, upstream.url) as editor:
                if session:
                    await editor.ask("session/load", sessionId=session, cwd=str(editor.workspace), mcpServers=[])
                else:
                    session = await editor.new()
                requests = len(upstream.requests)
                editor.prompt(session, f"prompt {number}")
                await asyncio.to_thread(upstream.wait_for_requests, requests + 1)
                messages.append(f"prompt {number}")
                await asyncio.sleep(random.uniform(0, 0.3))
                await editor.kill()
                history = editor.history(session)
            assert [e["content"] for e in history if e["role"] == "user"] == messages
            assert unpaired(history) == set()
            if number % 20 == 19:  # a file that grows for ever would make this a test of its size
                session, messages = "", []

    with ScriptedUpstream() as upstream:
        asyncio.run(scenario(upstream))
