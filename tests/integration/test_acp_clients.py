"""Clients that are not ours drive the agent: the SDK's own, and acpx; and the agent drives the real gateway."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import acp
import pytest
from acp.schema import AllowedOutcome, RequestPermissionResponse

from cortex.acp.store import Store
from tests.support.harness import DEMO_SOURCE, ROOT, Gateway, Neuron
from tests.support.scripted_upstream import Round, ScriptedUpstream

ACPX = "acpx@0.1.13"  # the last line that also runs on Debian's node


def environment(folder: Path, url: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HELEXA_")}
    return {
        **clean, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(folder / "data"), "HELEXA_ACP_BASE_URL": url,
        "XDG_CONFIG_HOME": str(folder / "config"),
    }  # fmt: skip


class Client:
    """What the SDK's client calls, with no file system and no terminal of its own."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0

    def on_connect(self, conn: acp.Agent) -> None:
        """Nothing is asked of the agent from here."""

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        if update.session_update == "agent_message_chunk":
            self.text += update.content.text
            self.pieces += 1

    async def request_permission(
        self, session_id: str, tool_call: Any, options: Any, **_: Any
    ) -> RequestPermissionResponse:
        chosen = next(o for o in options if o.kind == "allow_once")
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id=chosen.option_id))


async def drive(folder: Path, url: str, *prompts: str, **more: str) -> Client:
    """Run prompts in one session through the SDK's client."""
    client = Client()
    command = (sys.executable, "-m", "cortex.acp")
    async with acp.spawn_agent_process(
        cast(acp.Client, client), *command, env={**environment(folder, url), **more}
    ) as (agent, _):
        await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
        session = await agent.new_session(cwd=str(folder), mcp_servers=[])
        for text in prompts:
            answer = await agent.prompt(session_id=session.session_id, prompt=[acp.text_block(text)])
            assert answer.stop_reason in ("end_turn", "max_tokens")
    return client


def test_the_sdks_client_without_files_or_terminals_has_its_work_done_locally(tmp_path: Path) -> None:
    rounds = [
        Round(calls=[("c", "write_file", {"path": "x/a.txt", "content": "one\n"})]),
        Round(calls=[("c", "edit_file", {"path": "x/a.txt", "old_text": "one", "new_text": "two"})]),
        Round(calls=[("c", "bash", {"command": "cat x/a.txt; exit 3"})]),
        Round("all done"),
    ]
    with ScriptedUpstream(*rounds) as upstream:
        client = asyncio.run(drive(tmp_path, upstream.url, "go"))
        results = [m["content"] for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]
    assert client.text == "all done"
    assert results[-1] == "two\n\n[exit status 3]"
    assert (tmp_path / "x" / "a.txt").read_text() == "two\n"


def test_the_running_gateway_streams_an_answer_to_the_editor(tmp_path: Path) -> None:
    models = [{"id": "m", "source": DEMO_SOURCE, "vram_mb": 600}]
    with (
        Neuron(tmp_path / "n", models=models, preload=["m"]) as neuron,
        Gateway(tmp_path / "g", neurons=[neuron]) as gateway,
    ):
        client = asyncio.run(drive(tmp_path, f"{gateway.url}/v1", "Say hello.", HELEXA_ACP_MAX_TOKENS="12"))
    assert client.text
    assert client.pieces > 1
    (record,) = Store(tmp_path / "data" / "helexa-acp" / "sessions").sessions()
    assert [e["role"] for e in record.history] == ["user", "assistant"]  # type: ignore[union-attr]


@pytest.mark.needs_node
@pytest.mark.timeout(300)
def test_acpx_begins_prompts_and_resumes_a_session(tmp_path: Path) -> None:
    with ScriptedUpstream(Round("the first answer"), Round("the second answer")) as upstream:
        environ = {
            **environment(tmp_path, upstream.url), "HOME": str(tmp_path),
            "npm_config_update_notifier": "false", "npm_config_fund": "false",
        }  # fmt: skip

        def run(*command: str, timeout_s: float = 60) -> str:
            done = subprocess.run(
                command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run("npm", "install", "--silent", "--no-audit", ACPX, timeout_s=240)
        # The queue's owner ends at once when it is idle, so that each prompt starts and resumes anew.
        acpx = (
            str(tmp_path / "node_modules" / ".bin" / "acpx"), "--agent", f"{sys.executable} -m cortex.acp",
            "--format", "quiet", "--ttl", "1",
        )  # fmt: skip
        run(*acpx, "sessions", "new")
        assert "the first answer" in run(*acpx, "prompt", "first")
        store = Store(tmp_path / "data" / "helexa-acp" / "sessions")
        (record,) = store.sessions()
        assert "the second answer" in run(*acpx, "prompt", "second")
        run(*acpx, "sessions", "close")
        contents = [e["content"] for e in store.load(record.id).history]  # type: ignore[union-attr]
        assert contents == ["first", "the first answer", "second", "the second answer"]
        assert [m["content"] for m in upstream.requests[1]["messages"][1:]] == contents[:3]
