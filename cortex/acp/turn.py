"""A turn: rounds of one model reply with all its tool calls, each on disk before the next begins."""

import asyncio
import json
import logging
import time
from typing import Any

from acp import text_block, tool_content, update_agent_message_text, update_agent_thought_text
from acp.helpers import start_tool_call, update_tool_call
from acp.schema import ToolCallStatus, ToolCallUpdate, UsageUpdate

from common.log import fields
from cortex.acp import message
from cortex.acp.configuration import Endpoint
from cortex.acp.editor import EditorError
from cortex.acp.history import CANCELLED, project, reply_entry, result_entry
from cortex.acp.message import Block
from cortex.acp.schemas import SCHEMAS
from cortex.acp.session import Session, Superseded
from cortex.acp.store import Entry
from cortex.acp.tools import Call, ToolError, limit
from cortex.acp.upstream import Reply, Upstream, request_body
from cortex.acp.workspace import PathError, has_moved, judge

log = logging.getLogger(__name__)

MOST_ROUNDS = 25
_REPLY_SHARE = 4
"""Of the context window, so much (one in…) is left for the reply where no limit is set."""


class Turn:
    """One prompt being answered."""

    def __init__(
        self, session: Session, owner: object, upstream: Upstream, endpoint: Endpoint, model: str, entry: Entry
    ) -> None:
        self._session = session
        self._owner = owner
        self._upstream = upstream
        self._endpoint = endpoint
        self._model = model
        self._entry = entry
        self._reply: Reply | None = None
        self._is_replied = False
        self._results: list[Entry] = []

    async def run(self, blocks: list[Block]) -> str:
        """Run to the end and return the stop reason. Raises UpstreamError; what had come is kept all the same."""
        stop_reason = "error"
        try:
            stop_reason = await self._run(blocks)
        except asyncio.CancelledError:
            stop_reason = "cancelled"
        finally:
            try:
                self._keep_unfinished()
                await self._session.save()
            except Superseded:
                log.warning("turn ended after it was left behind", extra=fields(session=self._session.id))
            finally:  # a cancellation may come during the save
                log.info("prompt complete", extra=fields(session=self._session.id, stop_reason=stop_reason))
        return stop_reason

    async def _run(self, blocks: list[Block]) -> str:
        session = self._session
        files = await message.read_links(blocks, session.editor)
        self._entry["content"], dropped = message.compose(blocks, files)
        if dropped:
            await session.editor.update(update_agent_message_text(f"Not sent to the model: {', '.join(dropped)}.\n\n"))
        for problem in await session.servers.wait():
            await session.editor.update(update_agent_message_text(f"Note: {problem}.\n\n"))
        system = await self._system()
        for number in range(1, MOST_ROUNDS + 1):
            turns = len(session.record.history)
            log.info(
                "prompt round: streaming",
                extra=fields(session=session.id, round=number, of=MOST_ROUNDS, history_turns=turns),
            )
            reply = await self._stream(system)
            for call in reply.calls:
                self._results.append(await self._dispatch(call))
            self._finish_round()
            turns = len(session.record.history)
            log.info("prompt round complete; persisting", extra=fields(session=session.id, round=number, turns=turns))
            await session.save()
            await self._show_usage(reply)
            if not reply.calls:
                return {"length": "max_tokens", "content_filter": "refusal"}.get(reply.finish or "", "end_turn")
        return "max_turn_requests"

    async def _system(self) -> str:
        parts = [message.SYSTEM.format(cwd=self._session.record.cwd)]
        if self._session.record.mode == "plan":
            parts.append(message.PLAN)
        parts.append(await asyncio.to_thread(message.read_instructions, self._session.record.cwd))
        return "\n\n".join(p for p in parts if p)

    async def _stream(self, system: str) -> Reply:
        record, editor = self._session.record, self._session.editor
        budget = None
        if window := self._endpoint.context_window:
            budget = max(window - (self._endpoint.max_tokens or window // _REPLY_SHARE), window // 2)
        messages = project(system, record.history, compacted=record.compacted, budget_tokens=budget)
        tools = [*SCHEMAS, *self._session.servers.schemas] if self._endpoint.tools else []
        body = request_body(self._model, messages, tools, self._endpoint.max_tokens)
        reply = self._reply = Reply()
        self._is_replied = False
        async for text, reasoning in self._upstream.stream(self._endpoint, body, reply, self._log_wait):
            if reasoning:
                await editor.update(update_agent_thought_text(reasoning))
            if text:
                await editor.update(update_agent_message_text(text))
        reply.name_calls({c["id"] for e in record.history for c in e.get("tool_calls", ())})
        self._is_replied = True
        return reply

    async def _dispatch(self, call: dict[str, str]) -> Entry:
        self._session.check(self._owner)
        where = fields(session=self._session.id, tool=call["name"], tool_call_id=call["id"])
        log.info("dispatch tool", extra=where)
        began = time.monotonic()
        is_error = True
        try:
            text, is_error = await self._perform(call)
            return result_entry(call["id"], call["name"], text, is_error=is_error)
        finally:
            seconds = round(time.monotonic() - began, 3)
            log.info(
                "dispatch tool complete",
                extra=fields(session=self._session.id, tool_call_id=call["id"], is_error=is_error, seconds=seconds),
            )

    async def _perform(self, call: dict[str, str]) -> tuple[str, bool]:
        """Prepare, ask, do, show; return the result's text and whether it is an error."""
        editor, call_id = self._session.editor, call["id"]
        try:
            arguments = json.loads(call["arguments"] or "{}")
            if not isinstance(arguments, dict):
                raise ToolError("the arguments must be a JSON object")
            prepared = await self._session.tools.prepare(call["name"], arguments)
        except (ValueError, ToolError, PathError, EditorError) as error:
            text = f"the arguments are not JSON: {error}" if isinstance(error, ValueError) else str(error)
            content = [tool_content(text_block(text))]
            await editor.update(start_tool_call(call_id, call["name"] or "?", status="failed", content=content))
            return text, True
        await editor.update(
            start_tool_call(
                call_id, prepared.title, kind=prepared.kind, status="pending", content=prepared.content,
                locations=prepared.locations, raw_input=arguments,
            )
        )  # fmt: skip

        async def show(content: list[Any]) -> None:
            prepared.content = content
            await editor.update(update_tool_call(call_id, content=content))

        prepared.show = show
        try:
            await self._permit(call_id, prepared)
            await editor.update(update_tool_call(call_id, status="in_progress"))
            text, is_error = limit(await prepared.run()), False
        except (ToolError, PathError, EditorError) as error:
            text, is_error = limit(str(error)), True
        shown = prepared.content if prepared.kind in ("edit", "execute") and not is_error else []
        if not shown or prepared.kind == "execute":
            shown = [*(c for c in shown if c.type == "terminal"), tool_content(text_block(text))]
        status: ToolCallStatus = "failed" if is_error else "completed"
        await editor.update(update_tool_call(call_id, status=status, content=shown, raw_output=text))
        return text, is_error

    async def _permit(self, call_id: str, call: Call) -> None:
        """Return when the call may go on. Raises ToolError when it may not."""
        session = self._session
        verdict, reason = judge(session.record.mode, call.access, call.path, session.workspace)
        if verdict == "deny":
            raise ToolError(f"not allowed: {reason}")
        key = (call.access, call.path is None or session.workspace.holds(call.path), call.scope)
        if verdict == "allow" or key in session.allowed:
            return
        answer = await session.editor.ask(
            ToolCallUpdate(
                tool_call_id=call_id, title=call.title, kind=call.kind, status="pending", content=call.content,
                locations=call.locations,
            )
        )  # fmt: skip
        if answer == "no":
            raise ToolError("the user did not allow it; ask what to do instead")
        if answer == "always":
            session.allowed.add(key)
        if call.path is not None and has_moved(call.path):
            raise ToolError(f"{call.path}: became a link while the user was asked")
        if session.record.mode == "plan" and judge("plan", call.access, call.path, session.workspace)[0] == "deny":
            raise ToolError("not allowed: plan mode began while the user was asked")

    def _finish_round(self) -> None:
        assert self._reply is not None
        entry = reply_entry(self._reply.text, self._reply.reasoning, self._reply.calls)
        self._session.extend(self._owner, [entry, *self._results])
        self._reply, self._results = None, []

    def _keep_unfinished(self) -> None:
        """Add what came of a round that did not end: every complete call with a result, partial text as such."""
        reply = self._reply
        if reply is None:
            return
        calls = reply.calls if self._is_replied else []
        missing = [result_entry(c["id"], c["name"], CANCELLED, is_error=True) for c in calls[len(self._results) :]]
        if reply.text or reply.reasoning or calls:
            entry = reply_entry(reply.text, reply.reasoning, calls, is_partial=not self._is_replied)
            self._session.extend(self._owner, [entry, *self._results, *missing])
        self._reply, self._results = None, []

    async def _show_usage(self, reply: Reply) -> None:
        used = reply.prompt_tokens + reply.output_tokens
        if used and self._endpoint.context_window:
            usage = UsageUpdate(session_update="usage_update", used=used, size=self._endpoint.context_window)
            await self._session.editor.update(usage)

    def _log_wait(self, seconds: float) -> None:
        log.info("endpoint busy; waiting", extra=fields(session=self._session.id, seconds=seconds))
