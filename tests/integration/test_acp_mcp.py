"""The MCP servers that the editor gives a session: real ones of the official SDK."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cortex.acp.history import unpaired
from tests.support.harness import ROOT, free_port
from tests.support.scripted_editor import WAIT_S, Params, ScriptedEditor
from tests.support.scripted_upstream import Round, ScriptedUpstream

PROGRAM = str(ROOT / "tests" / "support" / "mcp_tools.py")
STDIO: Params = {
    "name": "my tools", "command": sys.executable, "args": [PROGRAM], "env": [{"name": "GREETING", "value": "hello"}],
}  # fmt: skip


async def begin(editor: ScriptedEditor, *servers: Params) -> str:
    opened = await editor.ask("session/new", cwd=str(editor.workspace), mcpServers=list(servers))
    return str(opened["sessionId"])


def told(upstream: ScriptedUpstream) -> list[str]:
    return [m["content"] for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]


def call(name: str, **arguments: Any) -> Round:
    return Round(calls=[("c", f"mcp__my_tools__{name}", arguments)])


def test_the_model_calls_a_servers_tools_with_permission_and_the_server_ends_with_the_session(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:

            async def always(_: Params) -> Any:
                return {"outcome": {"outcome": "selected", "optionId": "allow_always"}}

            editor.on["session/request_permission"] = always
            session = await begin(
                editor, STDIO, {**STDIO, "name": "absent", "command": "/no/program"}, {**STDIO, "name": "mortal"}
            )
            assert await editor.stop_reason(session, "go") == "end_turn"
            names = [t["function"]["name"] for t in upstream.requests[0]["tools"]]
            assert {"read_file", "mcp__my_tools__add", "mcp__my_tools__fail"} <= set(names)
            assert "the MCP server absent cannot be used" in editor.said()
            added, failed, again = told(upstream)
            assert added == again == "2 + 3 = 5; hello"
            assert "Error executing tool fail" in failed
            asked = [p["toolCall"]["title"] for m, p in editor.asked if m == "session/request_permission"]
            assert asked == ["my tools: add", "my tools: fail"], "what is allowed for one tool is not for another"

            upstream.rounds.append(Round(calls=[("c", "mcp__mortal__die", {})]))
            assert await editor.stop_reason(session, "die") == "end_turn"
            assert told(upstream)[-1].startswith("mortal: die: ")

            mark = tmp_path / "mark"
            upstream.rounds.append(call("hang", mark=str(mark)))
            hanging = editor.prompt(session, "hang")
            await editor.wait_until(mark.exists, "the tool hangs")
            editor.notify("session/cancel", sessionId=session)
            assert (await asyncio.wait_for(hanging, WAIT_S))["stopReason"] == "cancelled"
            assert unpaired(editor.history(session)) == set()

            upstream.rounds.append(call("add", a=1, b=1))
            await editor.ask("session/set_mode", sessionId=session, modeId="plan")
            await editor.stop_reason(session, "plan")
            assert "plan mode only reads" in told(upstream)[-1]

            agent = psutil.Process(editor.process.pid)
            children = [p for p in agent.children() if PROGRAM in p.cmdline()]
            await editor.ask("session/close", sessionId=session)
            assert children
            assert not any(c.is_running() for c in children)

    with ScriptedUpstream(call("add", a=2, b=3), call("fail"), call("add", a=2, b=3)) as upstream:
        asyncio.run(scenario(upstream))


@contextmanager
def serving(transport: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, PROGRAM, transport, str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=WAIT_S).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def test_servers_over_http_and_sse_are_used_as_one_over_pipes(tmp_path: Path) -> None:
    async def scenario(upstream: ScriptedUpstream, http: int, sse: int) -> None:
        async with ScriptedEditor(tmp_path, upstream.url) as editor:
            session = await begin(
                editor,
                {"type": "http", "name": "over http", "url": f"http://127.0.0.1:{http}/mcp", "headers": []},
                {"type": "sse", "name": "over sse", "url": f"http://127.0.0.1:{sse}/sse", "headers": []},
                {"type": "sse", "name": "nobody", "url": f"http://127.0.0.1:{free_port()}/sse", "headers": []},
            )
            assert await editor.stop_reason(session, "go") == "end_turn"
            added, failed, again = told(upstream)
            assert added == again == "2 + 3 = 5; no greeting"
            assert "Error executing tool fail" in failed
            assert "the MCP server nobody cannot be used" in editor.said()

    rounds = [
        Round(calls=[("c", f"mcp__{name}", arguments)])
        for name, arguments in (
            ("over_http__add", {"a": 2, "b": 3}),
            ("over_sse__fail", {}),
            ("over_sse__add", {"a": 2, "b": 3}),
        )
    ]
    with serving("http") as http, serving("sse") as sse, ScriptedUpstream(*rounds) as upstream:
        asyncio.run(scenario(upstream, http, sse))
