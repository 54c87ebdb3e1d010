"""MCP servers that cannot be had are named; blocks that no model gets are named too."""

import asyncio

import pytest
from acp import audio_block, text_block
from acp.schema import McpServerStdio

from cortex.acp import servers
from cortex.acp.message import compose
from cortex.acp.servers import Given, Servers


def problems(given: Given) -> list[list[str]]:
    async def scenario() -> list[list[str]]:
        mine = Servers("s", "/")
        mine.start([given])
        said = [await mine.wait(), await mine.wait()]
        assert mine.schemas == []
        await mine.close()
        return said

    return asyncio.run(scenario())


def test_without_the_sdk_a_server_is_named_once_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "is_supported", lambda: False)
    first, second = problems(McpServerStdio(name="files", command="/bin/true", args=[], env=[]))
    assert first == ["the MCP server files cannot be used: the agent was installed without MCP; install helexa[mcp]"]
    assert second == []


def test_a_recording_is_named_as_not_sent() -> None:
    content, dropped = compose([text_block("hear"), audio_block("AAAA", "audio/wav")], {})
    assert dropped == ["a recording (audio/wav)"]
    assert content.startswith("hear")
    assert "[not sent: a recording (audio/wav)" in content
