"""The protocol's methods: sessions by id, and what the editor may choose for them."""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acp import (
    PROTOCOL_VERSION,
    Client,
    RequestError,
    text_block,
    tool_content,
    update_agent_message_text,
    update_agent_thought_text,
)
from acp.helpers import start_tool_call, update_available_commands, update_current_mode, update_user_message
from acp.schema import (
    AgentCapabilities,
    ClientCapabilities,
    ConfigOptionUpdate,
    Implementation,
    InitializeResponse,
    ListSessionsResponse,
    LoadSessionResponse,
    McpCapabilities,
    NewSessionResponse,
    PromptCapabilities,
    PromptResponse,
    ResumeSessionResponse,
    SessionCapabilities,
    SessionCloseCapabilities,
    SessionConfigOptionSelect,
    SessionConfigSelectOption,
    SessionInfo,
    SessionInfoUpdate,
    SessionListCapabilities,
    SessionMode,
    SessionModeState,
    SessionResumeCapabilities,
    SetSessionConfigOptionResponse,
    TextContentBlock,
)
from pydantic import TypeAdapter

from common import __version__
from common.log import fields
from cortex.acp import commands, servers
from cortex.acp.configuration import Configuration
from cortex.acp.editor import Editor
from cortex.acp.message import Block, plain_text
from cortex.acp.session import Session
from cortex.acp.store import Entry, Record, Store, StoreError, UnknownSession
from cortex.acp.turn import Turn
from cortex.acp.upstream import Upstream, UpstreamError
from cortex.acp.workspace import MODES

log = logging.getLogger(__name__)

_PAGE = 50
_BLOCK: TypeAdapter[Block] = TypeAdapter(Block)


class HelexaAgent:
    """The agent of one editor."""

    def __init__(self, configuration: Configuration, store: Store, upstream: Upstream) -> None:
        self._configuration = configuration
        self._store = store
        self._upstream = upstream
        self._client: Client | None = None
        self._capabilities: ClientCapabilities | None = None
        self._sessions: dict[str, Session] = {}
        self._opening = asyncio.Lock()
        self._models: list[str] = []
        self._notices: set[asyncio.Task[None]] = set()

    def on_connect(self, conn: Client) -> None:
        """Take the editor's side of the connection."""
        self._client = conn

    async def initialize(
        self, protocol_version: int, client_capabilities: ClientCapabilities | None = None, **_: Any
    ) -> InitializeResponse:
        """Agree on a version and say what this agent can do."""
        self._capabilities = client_capabilities
        return InitializeResponse(
            protocol_version=min(protocol_version, PROTOCOL_VERSION) or PROTOCOL_VERSION,
            agent_info=Implementation(name="helexa-acp", title="Helexa", version=__version__),
            agent_capabilities=AgentCapabilities(
                load_session=True,
                mcp_capabilities=McpCapabilities(http=servers.is_supported(), sse=servers.is_supported()),
                prompt_capabilities=PromptCapabilities(image=True, audio=False, embedded_context=True),
                session_capabilities=SessionCapabilities(
                    list=SessionListCapabilities(), resume=SessionResumeCapabilities(), close=SessionCloseCapabilities()
                ),
            ),
            auth_methods=[],
        )

    async def authenticate(self, method_id: str, **_: Any) -> None:
        """Refuse: keys are configured, not asked for."""
        raise RequestError.invalid_params({"details": f"{method_id}: there is nothing to log in to"})

    async def new_session(
        self, cwd: str, additional_directories: list[str] | None = None, mcp_servers: list[Any] | None = None, **_: Any
    ) -> NewSessionResponse:
        """Begin a session."""
        _check_folder(cwd)
        record = self._store.create(cwd, list(additional_directories or []))
        await self._refresh_models()
        record.model = self._default_model()
        session = self._open(record, mcp_servers)
        await session.save()
        return NewSessionResponse(session_id=session.id, modes=_modes(record), config_options=self._options(record))

    async def load_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: list[Any] | None = None,
        additional_directories: list[str] | None = None,
        **_: Any,
    ) -> LoadSessionResponse:
        """Take a session up again and show all of it."""
        session = await self._resume(cwd, session_id, mcp_servers, additional_directories)
        for entry in list(session.record.history):
            await _replay(session.editor, entry, session.record.history)
        return LoadSessionResponse(modes=_modes(session.record), config_options=self._options(session.record))

    async def resume_session(
        self,
        cwd: str,
        session_id: str,
        mcp_servers: list[Any] | None = None,
        additional_directories: list[str] | None = None,
        **_: Any,
    ) -> ResumeSessionResponse:
        """Take a session up again without showing it."""
        session = await self._resume(cwd, session_id, mcp_servers, additional_directories)
        return ResumeSessionResponse(modes=_modes(session.record), config_options=self._options(session.record))

    async def list_sessions(self, cwd: str | None = None, cursor: str | None = None, **_: Any) -> ListSessionsResponse:
        """List the sessions on disk, the newest first."""
        rows = await asyncio.to_thread(self._listed, cwd)
        try:
            first = int(cursor or 0)
        except ValueError:
            raise RequestError.invalid_params({"details": f"cursor: {cursor!r} is none of ours"}) from None
        after = str(first + _PAGE) if first + _PAGE < len(rows) else None
        return ListSessionsResponse(sessions=rows[first : first + _PAGE], next_cursor=after)

    async def close_session(self, session_id: str, **_: Any) -> None:
        """End a session's work and forget it here; its file stays."""
        session = self._find(session_id)
        await session.stop()
        self._sessions.pop(session_id, None)

    async def set_session_mode(self, session_id: str, mode_id: str, **_: Any) -> None:
        """Change what needs permission."""
        session = self._find(session_id)
        await self._choose(session, "mode", mode_id)
        await session.editor.update(ConfigOptionUpdate(
            session_update="config_option_update", config_options=self._options(session.record)
        ))  # fmt: skip

    async def set_config_option(
        self, config_id: str, session_id: str, value: str | bool, **_: Any
    ) -> SetSessionConfigOptionResponse:
        """Change mode or model."""
        session = self._find(session_id)
        await self._choose(session, config_id, value)
        if config_id == "mode":
            await session.editor.update(update_current_mode(session.record.mode))
        return SetSessionConfigOptionResponse(config_options=self._options(session.record))

    async def prompt(self, session_id: str, prompt: list[Block], **_: Any) -> PromptResponse:
        """Answer a prompt; one in flight is cancelled first."""
        session = self._find(session_id)
        if not prompt:
            raise RequestError.invalid_params({"details": "prompt: must not be empty"})
        is_first = not session.record.title
        command = commands.split(plain_text(prompt))

        async def turn(owner: object, entry: Entry) -> str:
            if command is not None:
                path = str(self._store.path(session_id))
                return await commands.run(
                    session, owner, entry, commands.answer(session, *command, self._refresh_models, path)
                )
            if is_first:
                title = SessionInfoUpdate(session_update="session_info_update", title=session.record.title)
                await session.editor.update(title)
            endpoint, model = self._configuration.find(session.record.model or self._default_model())
            if not model:
                raise UpstreamError(
                    f"no model: {endpoint.base_url} lists none; set HELEXA_ACP_MODEL or choose one with /model"
                )
            return await Turn(session, owner, self._upstream, endpoint, model, entry).run(prompt)

        try:
            return PromptResponse(stop_reason=await session.prompt(prompt, turn))  # type: ignore[arg-type]
        except UpstreamError as error:
            log.warning("prompt failed", extra=fields(session=session_id, error=str(error)))
            raise RequestError(-32603, str(error)) from error

    async def cancel(self, session_id: str, **_: Any) -> None:
        """Cancel what a session is doing."""
        if session := self._sessions.get(session_id):
            session.cancel()

    async def shut_down(self) -> None:
        """End every turn and leave everything on disk."""
        await asyncio.gather(*(s.stop() for s in self._sessions.values()))
        await self._upstream.close()

    def _open(self, record: Record, mcp_servers: list[Any] | None) -> Session:
        assert self._client is not None
        session = Session(record, self._store, Editor(self._client, self._capabilities, record.id))
        session.servers.start(mcp_servers or [])
        self._sessions[record.id] = session
        # The editor does not know the session before it has the response, which goes out before this runs.
        task = asyncio.get_running_loop().create_task(self._show_commands(session))
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)
        return session

    async def _show_commands(self, session: Session) -> None:
        with contextlib.suppress(ConnectionError):
            await session.editor.update(update_available_commands(commands.COMMANDS))

    async def _resume(
        self, cwd: str, session_id: str, mcp_servers: list[Any] | None, directories: list[str] | None
    ) -> Session:
        _check_folder(cwd)
        async with self._opening:
            if live := self._sessions.get(session_id):
                await live.stop()
                record = live.record
            else:
                try:
                    record = await asyncio.to_thread(self._store.load, session_id)
                except UnknownSession as error:
                    raise RequestError(-32002, str(error)) from error
                except StoreError as error:
                    log.warning("session not loaded", extra=fields(session=session_id, error=str(error)))
                    raise RequestError(-32603, str(error)) from error
            record.cwd = cwd
            record.directories = list(directories or record.directories)
            await self._refresh_models()
            return self._open(record, mcp_servers)

    def _find(self, session_id: str) -> Session:
        if session_id not in self._sessions:
            raise RequestError(-32002, f"session {session_id} is not open; load it first")
        return self._sessions[session_id]

    async def _choose(self, session: Session, name: str, value: Any) -> None:
        record = session.record
        if name == "mode" and value in MODES:
            record.mode = value
        elif name == "model" and isinstance(value, str) and value and (not self._models or value in self._models):
            record.model = value
        else:
            known = list(MODES) if name == "mode" else self._models if name == "model" else "mode and model"
            raise RequestError.invalid_params({"details": f"{name}: {value!r} is none of {known}"})
        await session.save()

    async def _refresh_models(self) -> list[str]:
        default, *others = self._configuration.endpoints
        lists = await asyncio.gather(*(self._upstream.models(e) for e in (default, *others)))
        found = lists[0] + [f"{e.name}/{m}" for e, models in zip(others, lists[1:], strict=True) for m in models]
        if default.model and default.model not in found:
            found.insert(0, default.model)
        self._models = found
        return found

    def _default_model(self) -> str:
        return self._configuration.endpoints[0].model or next(iter(self._models), "")

    def _options(self, record: Record) -> list[Any]:
        models = list(self._models)
        if record.model and record.model not in models:
            models.insert(0, record.model)
        options = [
            SessionConfigOptionSelect(
                id="mode", name="Mode", category="mode", type="select", current_value=record.mode,
                options=[SessionConfigSelectOption(value=i, name=n, description=d) for i, (n, d) in MODES.items()],
            )
        ]  # fmt: skip
        if models:
            options.append(
                SessionConfigOptionSelect(
                    id="model", name="Model", category="model", type="select", current_value=record.model or models[0],
                    options=[SessionConfigSelectOption(value=m, name=m) for m in models],
                )
            )  # fmt: skip
        return options

    def _listed(self, cwd: str | None) -> list[SessionInfo]:
        records = []
        for found in self._store.sessions():
            if isinstance(found, StoreError):
                log.warning("session not listed", extra=fields(error=str(found)))
            elif cwd is None or found.cwd == cwd:
                records.append(found)
        records.sort(key=lambda r: -r.updated_at)
        return [
            SessionInfo(
                session_id=r.id, cwd=r.cwd, title=r.title or None,
                updated_at=datetime.fromtimestamp(r.updated_at, UTC).isoformat(),
            )
            for r in records
        ]  # fmt: skip


async def _replay(editor: Editor, entry: Entry, history: list[Entry]) -> None:
    if entry["role"] == "user":
        blocks = [_BLOCK.validate_python(b) for b in entry.get("blocks", [])]
        for block in blocks or [TextContentBlock(type="text", text=str(entry["content"]))]:
            await editor.update(update_user_message(block))
    elif entry["role"] == "assistant":
        if entry.get("reasoning"):
            await editor.update(update_agent_thought_text(entry["reasoning"]))
        if entry["content"]:
            await editor.update(update_agent_message_text(entry["content"]))
        results = {e["tool_call_id"]: e for e in history if e["role"] == "tool"}
        for call in entry.get("tool_calls", ()):
            result = results.get(call["id"])
            await editor.update(
                start_tool_call(
                    call["id"],
                    call["name"],
                    status="failed" if result is None or result.get("is_error") else "completed",
                    content=[tool_content(text_block(result["content"]))] if result else None,
                    raw_input=call["arguments"],
                )
            )


def _modes(record: Record) -> SessionModeState:
    modes = [SessionMode(id=i, name=n, description=d) for i, (n, d) in MODES.items()]
    return SessionModeState(current_mode_id=record.mode, available_modes=modes)


def _check_folder(cwd: str) -> None:
    if not Path(cwd).is_absolute() or not Path(cwd).is_dir():
        raise RequestError.invalid_params({"details": f"cwd: {cwd!r} is not an absolute path of a folder"})
