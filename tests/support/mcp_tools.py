"""An MCP server of the official SDK, for the agent to use: `python mcp_tools.py [http|sse PORT]`, else stdio."""

import asyncio
import os
import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("tools")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"{a} + {b} = {a + b}; {os.environ.get('GREETING', 'no greeting')}"


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("failed on purpose")


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(1)


@server.tool()
async def hang(mark: str) -> str:
    """Make a file and never answer."""
    await asyncio.to_thread(Path(mark).touch)
    await asyncio.Event().wait()
    return "never"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", port]:
            server.run("streamable-http", host="127.0.0.1", port=int(port))
        case ["sse", port]:
            server.run("sse", host="127.0.0.1", port=int(port))
        case _:
            server.run()
