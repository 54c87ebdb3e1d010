"""A session's MCP servers: started with it, ended with it, their tools beside the agent's own."""

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acp.schema import AcpMcpServer, HttpMcpServer, McpServerStdio, SseMcpServer

from common.log import fields

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 600.0
_CLOSE_TIMEOUT_S = 10.0
_LONGEST_NAME = 64
_MOST_PAGES = 100
Given = HttpMcpServer | SseMcpServer | AcpMcpServer | McpServerStdio


class ServerError(Exception):
    """A server's tool failed; the text is for the model."""


@dataclass(frozen=True)
class Tool:
    """One tool of a server."""

    name: str
    """For the model: unique in the session, letters, digits, _ and - only."""
    title: str
    schema: dict[str, Any]
    """As the endpoint is told of it."""
    server: "_Server"
    remote_name: str


@dataclass
class _Server:
    name: str
    opened: "asyncio.Future[Client]"
    task: "asyncio.Task[None] | None" = None
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    is_told: bool = False
    """Its failure has been shown to the user."""


def is_supported() -> bool:
    """Say whether the SDK for MCP is installed."""
    return importlib.util.find_spec("mcp") is not None


class Servers:
    """The servers of one session."""

    def __init__(self, session_id: str, cwd: str) -> None:
        self._session_id = session_id
        self._cwd = cwd
        self._servers: list[_Server] = []
        self._tools: dict[str, Tool] = {}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools of the servers that are open, as the endpoint is told of them."""
        return [t.schema for t in self._tools.values()]

    def find(self, name: str) -> Tool | None:
        """Return the tool that the model calls by a name."""
        return self._tools.get(name)

    def start(self, given: list[Given]) -> None:
        """Begin to start servers; `wait` tells what became of them."""
        loop = asyncio.get_running_loop()
        for description in given:
            server = _Server(description.name, loop.create_future())
            server.task = loop.create_task(self._serve(server, description))
            self._servers.append(server)

    async def wait(self) -> list[str]:
        """Wait, not for ever, until the servers are open; return what the user should know of those that are not."""
        waiting = [s.opened for s in self._servers if not s.opened.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=OPEN_TIMEOUT_S)
        problems = []
        for server in (s for s in self._servers if not s.is_told):
            if not server.opened.done():
                problems.append(f"the MCP server {server.name} is not open yet; going on without it")
            elif server.opened.cancelled():
                continue  # the session is being closed
            elif error := server.opened.exception():
                server.is_told = True
                problems.append(f"the MCP server {server.name} cannot be used: {_told(error)}")
        return problems

    async def call(self, tool: Tool, arguments: dict[str, Any]) -> str:
        """Call a tool and return its text. Raises ServerError."""
        try:
            result = await tool.server.opened.result().call_tool(
                tool.remote_name, arguments, read_timeout_seconds=CALL_TIMEOUT_S
            )
        except Exception as error:  # the SDK and its transports raise what they like
            raise ServerError(f"{tool.title}: {_told(error)}") from error
        text = "\n".join(_text(part) for part in result.content)
        if not text and result.structured_content is not None:
            text = str(result.structured_content)
        if result.is_error:
            raise ServerError(text or f"{tool.title}: failed and does not say why")
        return text or "[nothing]"

    async def close(self) -> None:
        """End every server."""
        tasks = [s.task for s in self._servers if s.task is not None]
        for server in self._servers:
            server.closing.set()
            if server.task is not None and not server.opened.done():
                server.task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
        self._servers.clear()
        self._tools.clear()

    async def _serve(self, server: _Server, given: Given) -> None:
        """Own a server's connection: the SDK wants it closed by the task that opened it."""
        try:
            async with _connect(given, self._cwd) as client:
                await self._list(server, client)
                server.opened.set_result(client)
                log.info("MCP server open", extra=fields(session=self._session_id, server=server.name))
                await server.closing.wait()
        except asyncio.CancelledError:
            server.opened.cancel()
            raise
        except Exception as error:  # one server's trouble, of whatever kind, must not end the session
            log.warning(
                "MCP server failed", extra=fields(session=self._session_id, server=server.name, error=_told(error))
            )
            if not server.opened.done():
                server.opened.set_exception(error)
                server.opened.exception()  # retrieved: nobody may ever prompt

    async def _list(self, server: _Server, client: "Client") -> None:
        cursor = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                name = self._name(server.name, tool.name)
                function = {"name": name, "description": tool.description or "", "parameters": tool.input_schema}
                schema = {"type": "function", "function": function}
                self._tools[name] = Tool(name, f"{server.name}: {tool.title or tool.name}", schema, server, tool.name)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _name(self, server: str, tool: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")[:_LONGEST_NAME]
        name, number = f"mcp__{plain}"[:_LONGEST_NAME], 2
        while name in self._tools:
            name = f"{name[: _LONGEST_NAME - 4]}_{number}"
            number += 1
        return name


@contextlib.asynccontextmanager
async def _connect(given: Given, cwd: str) -> "AsyncIterator[Client]":
    if not is_supported():
        raise ServerError("the agent was installed without MCP; install helexa[mcp]")
    # A second's work, which the other sessions need not wait for.
    await asyncio.to_thread(importlib.import_module, "mcp")
    import httpx2
    from mcp import Client, StdioServerParameters
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    async with contextlib.AsyncExitStack() as stack:
        match given:
            case McpServerStdio():
                environment = {e.name: e.value for e in given.env}
                target: Any = StdioServerParameters(command=given.command, args=given.args, env=environment, cwd=cwd)
            case HttpMcpServer():
                headers = {h.name: h.value for h in given.headers}
                timeout = httpx2.Timeout(OPEN_TIMEOUT_S, read=CALL_TIMEOUT_S)
                http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout))
                target = streamable_http_client(given.url, http_client=http)
            case SseMcpServer():
                headers = {h.name: h.value for h in given.headers}
                target = sse_client(given.url, headers=headers, sse_read_timeout=CALL_TIMEOUT_S)
            case _:
                raise ServerError("servers inside the editor are not supported")
        yield await stack.enter_async_context(Client(target))


def _text(part: Any) -> str:
    """Return a part of a result for the model, which gets text alone."""
    if part.type == "text":
        return str(part.text)
    if part.type == "resource" and hasattr(part.resource, "text"):
        return str(part.resource.text)
    if part.type == "resource_link":
        return f"[link {part.name}: {part.uri}]"
    return f"[not passed on: {part.type}]"


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
