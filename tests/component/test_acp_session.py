"""A session's file: one writer, however stuck the disk; and many sessions, listed, paged and pruned."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from acp import text_block

from cortex.acp import session as session_module
from cortex.acp.editor import Editor
from cortex.acp.history import reply_entry
from cortex.acp.message import Block
from cortex.acp.session import Session
from cortex.acp.store import Entry, Store
from tests.support.harness import ROOT
from tests.support.scripted_editor import WAIT_S, RpcError, ScriptedEditor
from tests.support.scripted_upstream import ScriptedUpstream


class SlowDisk(Store):
    """Writes when it is let to, and notes who else writes meanwhile."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate = threading.Event()
        self.writing = 0
        self.most = 0
        self.lengths: list[int] = []
        """Of the history in each file written, in order."""

    def write(self, session_id: str, content: bytes) -> None:
        """Wait for the gate, then write."""
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.gate.wait(WAIT_S)
        super().write(session_id, content)
        self.lengths.append(len(json.loads(content)["history"]))
        self.writing -= 1


def test_a_stuck_disk_holds_up_no_prompt_and_only_one_writer_ever_touches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "_SAVE_S", 0.02)
    blocks: list[Block] = [text_block("q")]

    async def scenario() -> tuple[SlowDisk, int]:
        disk = SlowDisk(tmp_path)
        record = disk.create(str(tmp_path), [])
        session = Session(record, disk, cast(Editor, None))

        async def turn(owner: object, entry: Entry) -> str:
            session.extend(owner, [reply_entry("a", "", [])])
            await session.save()
            return "end_turn"

        async with asyncio.timeout(WAIT_S):
            for _ in range(5):
                assert await session.prompt(blocks, turn) == "end_turn"
            assert disk.lengths == []
            disk.gate.set()
            monkeypatch.setattr(session_module, "_SAVE_S", WAIT_S)
            await session.save()
            await session.stop()
        return disk, len(disk.load(record.id).history)

    disk, entries = asyncio.run(scenario())
    assert "session not saved yet; going on" in caplog.text
    assert disk.most == 1
    assert disk.lengths == sorted(disk.lengths)
    assert entries == disk.lengths[-1] == 10


def test_sessions_are_listed_by_page_and_folder_the_newest_first(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            session = await editor.new()
            saved = json.loads(editor.session_file(session).read_text())
            for number in range(60):
                other = {**saved, "id": f"sess_{number}", "cwd": "/elsewhere", "updated_at": float(number)}
                editor.session_file(f"sess_{number}").write_text(json.dumps(other))
            first = await editor.ask("session/list")
            assert [r["sessionId"] for r in first["sessions"][:2]] == [session, "sess_59"]
            assert len(first["sessions"]) == 50
            second = await editor.ask("session/list", cursor=first["nextCursor"])
            assert [r["sessionId"] for r in second["sessions"]] == [f"sess_{n}" for n in reversed(range(11))]
            assert second.get("nextCursor") is None
            here = await editor.ask("session/list", cwd=str(editor.workspace))
            assert [r["sessionId"] for r in here["sessions"]] == [session]
            with pytest.raises(RpcError):
                await editor.ask("session/list", cursor="of another program")

    with ScriptedUpstream() as upstream:
        asyncio.run(scenario(upstream))


def test_old_sessions_are_removed_when_asked_for_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "helexa-acp" / "sessions"
    store = Store(folder)
    old, new = store.create("/", []), store.create("/", [])
    for record in (old, new):
        store.write(record.id, record.encode())
    (folder / "notes.json").write_text("{}")
    long_ago = time.time() - 91 * 86400
    for name in (f"{old.id}.json", "notes.json"):
        os.utime(folder / name, (long_ago, long_ago))

    def run(days: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "cortex.acp", "--prune", days]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)

    done = run("90")
    assert (done.returncode, done.stdout) == (0, f"1 removed from {folder}\n")
    assert sorted(p.name for p in folder.iterdir()) == sorted([f"{new.id}.json", "notes.json"])
    assert run("0").returncode == 2
