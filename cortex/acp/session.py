"""A live session: one turn at a time, one writer, and a file that is never behind by more than the round under way."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from common.log import fields
from cortex.acp.editor import Editor
from cortex.acp.history import user_entry
from cortex.acp.message import Block, compose, plain_text
from cortex.acp.servers import Servers
from cortex.acp.store import Entry, Record, Store
from cortex.acp.tools import Tools
from cortex.acp.workspace import Access, Workspace

log = logging.getLogger(__name__)

UNWIND_S = 5.0
_NUDGE_S = 1.0
_SAVE_S = 10.0
_TITLE = 80


class Superseded(Exception):
    """A turn that did not end in time and was left behind has tried to write."""


class Session:
    """One session. All of it runs on the event loop; only the file is written elsewhere."""

    def __init__(self, record: Record, store: Store, editor: Editor) -> None:
        self.record = record
        self.editor = editor
        self.workspace = Workspace(record.cwd, tuple(record.directories))
        self.servers = Servers(record.id, record.cwd)
        self.tools = Tools(editor, self.workspace, self.servers)
        self.allowed: set[tuple[Access, bool, str]] = set()
        """What the user has allowed for good: the access, whether inside the workspace, and which server's tool."""
        self._store = store
        self._gate = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._saves: set[asyncio.Task[None]] = set()
        self._snapshot = 0
        self._written = 0
        self._turn: asyncio.Task[str] | None = None
        self._owner: object | None = None
        self._tickets = 0
        self._cancelled_through = 0

    @property
    def id(self) -> str:
        """The session's id."""
        return self.record.id

    async def prompt(self, blocks: list[Block], make_turn: Any) -> str:
        """End the turn in flight, run a new one, and return its stop reason.

        `make_turn(owner, entry)` returns the new turn's coroutine. A prompt that has itself been overtaken before its
        turn could begin leaves its message in the history and is cancelled.
        """
        self._tickets += 1
        ticket = self._tickets
        if self._turn is not None:
            self._turn.cancel()
        async with self._gate:
            await self._end_turn()
            entry = self._take(blocks)
            await self.save()
            if ticket < self._tickets or ticket <= self._cancelled_through:
                log.info("prompt complete", extra=fields(session=self.id, stop_reason="cancelled"))
                return "cancelled"
            owner = self._owner = object()
            turn = self._turn = asyncio.create_task(make_turn(owner, entry))
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            turn.add_done_callback(lambda t: _settle(t, answer))
            self._answer = answer
        return await answer

    def cancel(self) -> None:
        """Cancel the turn in flight and the prompts that wait behind it."""
        self._cancelled_through = self._tickets
        if self._turn is not None:
            self._turn.cancel()

    async def stop(self) -> None:
        """Cancel as `cancel` does, wait for the end, and end the MCP servers."""
        self.cancel()
        async with self._gate:
            await self._end_turn()
        await self.servers.close()
        if self._saves:
            await asyncio.wait(self._saves, timeout=_SAVE_S)

    def check(self, owner: object) -> None:
        """Raise Superseded for a turn that was left behind."""
        if owner is not self._owner:
            raise Superseded

    def extend(self, owner: object, entries: list[Entry]) -> None:
        """Add to the history. Raises Superseded for a turn that was left behind."""
        self.check(owner)
        self.record.history += entries
        self.record.updated_at = time.time()

    async def save(self) -> None:
        """Write the session as it is now; a failure is logged and changes nothing else. Returns when it is on disk."""
        self._snapshot += 1
        task = asyncio.create_task(self._write(self._snapshot, self.record.encode()))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        # Waited for from outside: a cancelled turn does not stop a write that has begun.
        _, late = await asyncio.wait({task}, timeout=_SAVE_S)
        if late:
            log.warning("session not saved yet; going on", extra=fields(session=self.id, seconds=_SAVE_S))

    async def _write(self, snapshot: int, content: bytes) -> None:
        async with self._writing:
            if snapshot < self._written:
                return
            try:
                await asyncio.to_thread(self._store.write, self.id, content)
                self._written = snapshot
            except OSError as error:
                log.warning("session not saved", extra=fields(session=self.id, error=str(error)))

    def _take(self, blocks: list[Block]) -> Entry:
        content, _ = compose(blocks, {})
        entry = user_entry(content, [b.model_dump(mode="json", by_alias=True, exclude_none=True) for b in blocks])
        self.record.history.append(entry)
        self.record.updated_at = time.time()
        if not self.record.title:
            self.record.title = next(iter(plain_text(blocks).splitlines()), "")[:_TITLE]
        return entry

    async def _end_turn(self) -> None:
        turn = self._turn
        if turn is None:
            return
        deadline = time.monotonic() + UNWIND_S
        while not turn.done() and time.monotonic() < deadline:
            turn.cancel()
            await asyncio.wait({turn}, timeout=_NUDGE_S)
        self._owner = None
        self._turn = None
        if not turn.done():
            log.warning("turn does not end; left behind", extra=fields(session=self.id, seconds=UNWIND_S))
            with contextlib.suppress(asyncio.InvalidStateError):
                self._answer.set_result("cancelled")


def _settle(turn: asyncio.Task[str], answer: "asyncio.Future[str]") -> None:
    error = None if turn.cancelled() else turn.exception()
    if answer.done():
        return  # it was left behind, and has now come to its end
    if turn.cancelled():
        answer.set_result("cancelled")
    elif error:
        answer.set_exception(error)
    else:
        answer.set_result(turn.result())
