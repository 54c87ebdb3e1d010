"""A turn that hangs or an agent that is killed costs the round under way and nothing before it."""

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cortex.acp.history import unpaired
from tests.support.harness import ROOT
from tests.support.scripted_editor import ScriptedEditor, stall
from tests.support.scripted_upstream import Round, ScriptedUpstream

PLACES = ("headers", "stream", "tool", "permission", "file")


def reading(number: int) -> Round:
    return Round(f"round {number}", [("call_0", "read_file", {"path": "a.txt"})])


def stalling(place: str) -> Round:
    """A round that stalls for ever at a place: in the upstream, or in what it makes the editor do."""
    match place:
        case "headers":
            return Round(stall="headers")
        case "stream":
            return Round("never comes to its end", stall="body", cut=300)
        case "tool":
            return Round("running", [("call_0", "bash", {"command": "true"})])
        case "file":
            return Round("reading on", [("call_0", "read_file", {"path": "stuck.txt"})])
    return Round("asking", [("call_0", "write_file", {"path": "b.txt", "content": "b"})])


async def wedge(editor: ScriptedEditor, upstream: ScriptedUpstream, place: str, rounds: int, asked: int = 1) -> None:
    """Wait until the turn hangs where it should."""
    await asyncio.to_thread(upstream.wait_for_requests, rounds)
    if place == "stream":
        await editor.wait_until(lambda: "never" in editor.said(), "the beginning of the stream")
    elif place == "tool":
        await editor.wait_asked("terminal/wait_for_exit", asked)
    elif place == "permission":
        await editor.wait_asked("session/request_permission", asked)
    elif place == "file":
        await editor.wait_until(
            lambda: sum(p.get("path", "").endswith("stuck.txt") for _, p in editor.asked) >= asked, "the stuck file"
        )


def set_stalls(editor: ScriptedEditor, place: str) -> None:
    (editor.workspace / "a.txt").write_text("content of a")
    if place == "tool":
        editor.on["terminal/wait_for_exit"] = stall
    if place == "permission":
        editor.on["session/request_permission"] = stall
    if place == "file":
        (editor.workspace / "stuck.txt").write_text("never comes")
        read = editor.on["fs/read_text_file"]
        editor.on["fs/read_text_file"] = lambda asked: (
            stall(asked) if asked["path"].endswith("stuck.txt") else read(asked)
        )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_after_sigkill_in_round_k_the_rounds_before_are_on_disk_and_the_session_goes_on(
    tmp_path: Path, place: str, k: int
) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            set_stalls(editor, place)
            session = await editor.new()
            editor.prompt(session, "my question")
            await wedge(editor, upstream, place, k)
            await editor.kill()
            history = editor.history(session)
        assert [e["role"] for e in history] == ["user"] + ["assistant", "tool"] * (k - 1)
        assert history[0]["content"] == "my question"
        assert unpaired(history) == set()
        assert all(e["content"] == "content of a" for e in history if e["role"] == "tool")
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            await editor.ask("session/load", sessionId=session, cwd=str(editor.workspace), mcpServers=[])
            assert editor.said("user_message_chunk") == "my question"
            assert editor.said() == "".join(f"round {n}" for n in range(1, k))
            assert await editor.stop_reason(session, "go on") == "end_turn"
            sent = upstream.requests[-1]["messages"]
            assert [m["role"] for m in sent if m["role"] == "tool"] == ["tool"] * (k - 1)
            assert "go on" in sent[-1]["content"]

    with ScriptedUpstream(*(reading(n) for n in range(1, k)), stalling(place)) as upstream:
        asyncio.run(scenario(upstream))


@pytest.mark.parametrize("place", PLACES)
def test_a_second_prompt_or_a_cancel_ends_a_wedged_one_within_a_second(tmp_path: Path, place: str) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            set_stalls(editor, place)
            session = await editor.new()
            first = editor.prompt(session, "first")
            await wedge(editor, upstream, place, 2)
            began = time.monotonic()
            second = editor.prompt(session, "second")
            assert (await asyncio.wait_for(first, 5))["stopReason"] == "cancelled"
            assert time.monotonic() - began < 1.0
            assert (await asyncio.wait_for(second, 10))["stopReason"] == "end_turn"
            assert "the second answer" in editor.said()
            editor.updates.clear()
            third = editor.prompt(session, "third")
            await wedge(editor, upstream, place, 4, asked=2)
            began = time.monotonic()
            editor.notify("session/cancel", sessionId=session)
            assert (await asyncio.wait_for(third, 5))["stopReason"] == "cancelled"
            assert time.monotonic() - began < 1.0
            history = editor.history(session)
            assert [e["content"] for e in history if e["role"] == "user"] == ["first", "second", "third"]
            assert unpaired(history) == set()
            cancelled = [e for e in history if e["role"] == "tool" and e["content"].startswith("cancelled")]
            assert len(cancelled) == (2 if place in ("tool", "permission", "file") else 0)
            assert [e["content"] for e in history if e.get("partial")] == (
                [editor_text(place)] * 2 if place == "stream" else []
            )

    script = [reading(1), stalling(place), Round("the second answer"), stalling(place)]
    with ScriptedUpstream(*script) as upstream:
        asyncio.run(scenario(upstream))


def editor_text(place: str) -> str:
    """Return what of the stalled stream has come: whole events within its cut."""
    body = stalling(place).body()[:300]
    events = [json.loads(e[6:]) for e in body.split(b"\n\n")[:-1] if e.startswith(b"data: ")]
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events)


def test_a_hundred_prompts_without_waiting_leave_one_answer_and_every_message(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            session = await editor.new()
            prompts = [editor.prompt(session, f"prompt {n}") for n in range(100)]
            reasons = [r["stopReason"] for r in await asyncio.wait_for(asyncio.gather(*prompts), 60)]
            assert reasons == ["cancelled"] * 99 + ["end_turn"]
            history = editor.history(session)
            assert [e["content"] for e in history if e["role"] == "user"] == [f"prompt {n}" for n in range(100)]
            assert history[-1]["content"] == "done"

    with ScriptedUpstream() as upstream:
        asyncio.run(scenario(upstream))


def test_a_wedged_session_holds_up_no_other(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            set_stalls(editor, "permission")
            first, second = await editor.new(), await editor.new()
            wedged = editor.prompt(first, "first")
            await wedge(editor, upstream, "permission", 1)
            assert await editor.stop_reason(second, "second") == "end_turn"
            assert not wedged.done()
            assert [e["role"] for e in editor.history(second)] == ["user", "assistant"]
            editor.notify("session/cancel", sessionId=first)
            assert (await asyncio.wait_for(wedged, 5))["stopReason"] == "cancelled"

    with ScriptedUpstream(stalling("permission")) as upstream:
        asyncio.run(scenario(upstream))


def test_loading_a_live_session_ends_its_wedged_prompt(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            session = await editor.new()
            wedged = editor.prompt(session, "first")
            await asyncio.to_thread(upstream.wait_for_requests, 1)
            await editor.ask("session/load", sessionId=session, cwd=str(editor.workspace), mcpServers=[])
            assert (await asyncio.wait_for(wedged, 1))["stopReason"] == "cancelled"
            assert editor.said("user_message_chunk") == "first"

    with ScriptedUpstream(Round(stall="headers")) as upstream:
        asyncio.run(scenario(upstream))


@pytest.mark.parametrize(
    ("place", "last"), [("headers", "prompt round: streaming"), *((p, "dispatch tool") for p in PLACES[2:])]
)
def test_the_log_alone_shows_where_a_turn_hangs(tmp_path: Path, place: str, last: str) -> None:
    async def scenario(upstream: ScriptedUpstream) -> str:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            set_stalls(editor, place)
            session = await editor.new()
            editor.prompt(session, "go")
            await wedge(editor, upstream, place, 2)
            lines = [parse(line) for line in editor.log_file.read_text().splitlines()]
            assert [text for text, _ in lines] == [
                "prompt round: streaming", "dispatch tool", "dispatch tool complete",
                "prompt round complete; persisting", "prompt round: streaming",
                *(["dispatch tool"] if last == "dispatch tool" else []),
            ]  # fmt: skip
            assert all(found["session"] == session for _, found in lines)
            assert lines[0][1].keys() == {"session", "round", "of", "history_turns"}
            assert lines[1][1].keys() == {"session", "tool", "tool_call_id"}
            assert lines[2][1].keys() == {"session", "tool_call_id", "is_error", "seconds"}
            assert lines[3][1].keys() == {"session", "round", "turns"}
            assert lines[4][1] == {"session": session, "round": "2", "of": "25", "history_turns": "3"}
            editor.notify("session/cancel", sessionId=session)
            await editor.wait_until(lambda: "prompt complete" in editor.log_file.read_text(), "the end in the log")
            assert parse(editor.log_file.read_text().splitlines()[-1])[1]["stop_reason"] == "cancelled"
            return lines[-1][0]

    with ScriptedUpstream(reading(1), stalling(place)) as upstream:
        assert asyncio.run(scenario(upstream)) == last


def parse(line: str) -> tuple[str, dict[str, str]]:
    found = re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info +helexa-acp: (.*?)((?: \w+=\S+)*)", line)
    assert found, line
    return found[1], dict(pair.split("=", 1) for pair in found[2].split())


@pytest.mark.parametrize("disk", ["full", "not writable"])
def test_a_failing_disk_warns_and_the_prompt_goes_on(tmp_path: Path, disk: str) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        log = tmp_path / "elsewhere"
        shell = "ulimit -f 4" if disk == "full" else ""
        async with ScriptedEditor(tmp_path, upstream.url, shell=shell, HELEXA_ACP_LOG_FILE=str(log)) as editor:
            if disk == "not writable":
                (tmp_path / "data").write_text("a file where the folder should be")
            session = await editor.new()
            assert await editor.stop_reason(session, "x" * 10_000) == "end_turn"
            assert "session not saved" in log.read_text()
            if disk == "full":
                assert editor.history(session) == []
                assert [p.name for p in editor.session_file(session).parent.iterdir()] == [f"{session}.json"]

    with ScriptedUpstream(Round("an answer")) as upstream:
        asyncio.run(scenario(upstream))


KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from cortex.acp.store import Record, Store
store = Store(Path(sys.argv[1]))
record = store.create("/", [])
store.write(record.id, record.encode())
seen = set()
for _ in range(1000):
    child = os.fork()
    if child == 0:
        number = random.randrange(1, 1000)
        while True:
            number += 1
            record.history = [{"role": "user", "content": f"{number} " * 2000}]
            store.write(record.id, record.encode())
    time.sleep(random.uniform(0, 0.006))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    history = store.load(record.id).history
    if history:
        words = history[0]["content"].split()
        assert len(words) == 2000 and len(set(words)) == 1, words[:3]
        seen.add(words[0])
left = len(list(store.folder.glob(".*.tmp")))
print(json.dumps([len(seen), left, len(store.prune(-1))]))
"""


def test_a_thousand_kills_at_random_moments_never_tear_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen, left, pruned = json.loads(done.stdout)
    assert seen > 100, "the writers were killed before they wrote anything"
    assert left > 0, "no writer was killed in the middle of a write"
    assert pruned == left + 1
