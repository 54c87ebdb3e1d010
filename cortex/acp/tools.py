"""The tools a model may call: what each takes, what it shows, what it may touch, what it does."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from acp import plan_entry, text_block, tool_content, tool_diff_content, tool_terminal_ref, update_plan
from acp.schema import ToolCallLocation, ToolKind

from cortex.acp import search
from cortex.acp.editor import Editor, Ran, run_locally
from cortex.acp.servers import ServerError, Servers, Tool
from cortex.acp.workspace import Access, Workspace

OUTPUT_LIMIT = 30_000
BASH_TIMEOUT_S = 600
_END = 200
"""Characters for how a command ended, and for how much of its output was cut: what is limited twice says it wrongly."""
_STATUSES = ("pending", "in_progress", "completed")


class ToolError(Exception):
    """A call cannot be done; the text is for the model."""


@dataclass
class Call:
    """A call in hand: what it will do, shown before it is done."""

    title: str
    kind: ToolKind
    access: Access
    path: str | None = None
    """Resolved; None where a call touches no file of its own."""
    line: int | None = None
    content: list[Any] = field(default_factory=list)
    run: Callable[[], Awaitable[str]] = field(kw_only=True)
    show: Callable[[list[Any]], Awaitable[None]] | None = None
    """Set by the caller: shows content while the call runs."""
    scope: str = ""
    """The name of an MCP server's tool: what is allowed for it is allowed for nothing else."""

    @property
    def locations(self) -> list[ToolCallLocation]:
        """Where the editor may follow."""
        return [ToolCallLocation(path=self.path, line=self.line)] if self.path else []


def limit(text: str, most: int = OUTPUT_LIMIT) -> str:
    """Return the text with its middle cut where it is too long, and a note of how much."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"


class Tools:
    """The tools of one session."""

    def __init__(self, editor: Editor, workspace: Workspace, servers: Servers) -> None:
        self._editor = editor
        self._workspace = workspace
        self._servers = servers
        self._makers = {
            "read_file": self._read_file,
            "write_file": self._write_file,
            "edit_file": self._edit_file,
            "list_dir": self._list_dir,
            "search": self._search,
            "bash": self._bash,
            "update_plan": self._update_plan,
        }

    async def prepare(self, name: str, arguments: dict[str, Any]) -> Call:
        """Check a call's arguments and return it, not yet done. Raises ToolError, PathError or EditorError."""
        maker = self._makers.get(name)
        if maker is None and (tool := self._servers.find(name)):
            return self._remote(tool, arguments)
        if maker is None:
            raise ToolError(f"there is no tool {name!r}; there are {', '.join(self._makers)}")
        return await maker(_Arguments(name, arguments))

    async def _read_file(self, given: "_Arguments") -> Call:
        path = self._workspace.resolve(given.text("path"))
        first, count = given.number("line", 1), given.number("limit", 2000)

        async def run() -> str:
            lines = (await self._editor.read(path)).splitlines(keepends=True)
            part = lines[first - 1 : first - 1 + count]
            rest = len(lines) - (first - 1) - len(part)
            return "".join(part) + (f"\n[{rest} more lines; the file has {len(lines)}]" if rest > 0 else "")

        return Call(f"Read {self._name(path)}", "read", "read", path, first if first > 1 else None, run=run)

    async def _write_file(self, given: "_Arguments") -> Call:
        path, new = self._workspace.resolve(given.text("path")), given.text("content")
        old = await self._editor.read(path) if self._workspace.has(path) else None

        async def run() -> str:
            await self._editor.write(path, new)
            return f"{'Replaced' if old is not None else 'Wrote'} {path} ({len(new)} characters)."

        diff = [tool_diff_content(path, new, old)]
        return Call(f"Write {self._name(path)}", "edit", "write", path, content=diff, run=run)

    async def _edit_file(self, given: "_Arguments") -> Call:
        path = self._workspace.resolve(given.text("path"))
        old, new = given.text("old_text"), given.text("new_text")
        if not old:
            raise ToolError("old_text: must not be empty; write_file makes a file")
        if old == new:
            raise ToolError("new_text: is the same as old_text")
        if not self._workspace.holds(path):
            raise ToolError(f"{path}: outside the workspace; edit_file works inside it")
        before = await self._editor.read(path)
        line = _unique(path, before, old)

        async def run() -> str:
            # The user may have taken minutes to allow it.
            now = await self._editor.read(path)
            _unique(path, now, old)
            await self._editor.write(path, now.replace(old, new, 1))
            return f"Edited {path} at line {line}."

        diff = [tool_diff_content(path, before.replace(old, new, 1), before)]
        return Call(f"Edit {self._name(path)}", "edit", "write", path, line, diff, run=run)

    async def _list_dir(self, given: "_Arguments") -> Call:
        path = self._workspace.resolve(given.text("path", "."))
        return Call(
            f"List {self._name(path)}", "read", "read", path, run=lambda: asyncio.to_thread(search.list_folder, path)
        )

    async def _search(self, given: "_Arguments") -> Call:
        path, text = self._workspace.resolve(given.text("path", ".")), given.text("text")
        find = search.Search(path, text, self._workspace.holds)
        return Call(f"Search {self._name(path)} for {text}", "search", "read", path, run=find.run)

    async def _bash(self, given: "_Arguments") -> Call:
        command = given.text("command")
        timeout_s = given.number("timeout_s", BASH_TIMEOUT_S)
        if not command.strip():
            raise ToolError("command: must not be empty")

        async def run() -> str:
            if not self._editor.has_terminals:
                return _told(await run_locally(command, self._workspace.cwd, timeout_s), timeout_s)
            terminal = await self._editor.open_terminal(command, self._workspace.cwd)
            if call.show is not None:
                await call.show([tool_terminal_ref(terminal)])
            return _told(await self._editor.finish_terminal(terminal, timeout_s), timeout_s)

        call = Call(command.splitlines()[0][:120], "execute", "run", run=run)
        call.content = [tool_content(text_block(f"```sh\n{command}\n```"))]
        return call

    def _remote(self, tool: Tool, arguments: dict[str, Any]) -> Call:
        async def run() -> str:
            try:
                return await self._servers.call(tool, arguments)
            except ServerError as error:
                raise ToolError(str(error)) from error

        return Call(tool.title, "other", "run", scope=tool.name, run=run)

    async def _update_plan(self, given: "_Arguments") -> Call:
        entries = given.entries()

        async def run() -> str:
            await self._editor.update(update_plan([plan_entry(text, status=status) for text, status in entries]))
            return "The plan is shown."

        return Call("Update the plan", "think", "read", run=run)

    def _name(self, path: str) -> str:
        return os.path.relpath(path, os.path.realpath(self._workspace.cwd)) if self._workspace.holds(path) else path


def _unique(path: str, text: str, old: str) -> int:
    """Return the line where `old` begins. Raises ToolError unless it is there exactly once."""
    match text.count(old):
        case 1:
            return text.count("\n", 0, text.index(old)) + 1
        case 0:
            raise ToolError(f"old_text: not in {path}; read the file again, white space counts")
        case many:
            raise ToolError(f"old_text: {many} times in {path}; give more lines around it, so that it is unique")


def _told(ran: Ran, timeout_s: float) -> str:
    end = f"killed by {ran.signal}" if ran.signal else f"exit status {ran.status}"
    if ran.is_timed_out:
        end = f"killed after {timeout_s:g} s"
    text = f"{limit(ran.output, OUTPUT_LIMIT - _END)}\n[{end}]".lstrip("\n")
    if ran.is_timed_out or ran.signal or ran.status:
        raise ToolError(text)
    return text


class _Arguments:
    """A call's arguments; each reader raises ToolError naming the field."""

    def __init__(self, tool: str, values: dict[str, Any]) -> None:
        self._tool = tool
        self._values = values

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise ToolError(f"{self._tool}: {name}: must be text" if value is not None else f"{name}: missing")
        return value

    def number(self, name: str, default: int) -> int:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ToolError(f"{self._tool}: {name}: must be a whole number from 1")
        return value

    def entries(self) -> list[tuple[str, Any]]:
        rows = self._values.get("entries")
        if not isinstance(rows, list) or not all(
            isinstance(r, dict) and isinstance(r.get("content"), str) for r in rows
        ):
            raise ToolError(f"{self._tool}: entries: must be a list of objects with content and status")
        for row in rows:
            if row.get("status", "pending") not in _STATUSES:
                raise ToolError(f"{self._tool}: status: must be one of {', '.join(_STATUSES)}")
        return [(r["content"], r.get("status", "pending")) for r in rows]
