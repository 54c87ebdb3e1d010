"""One session's view of the editor: updates, permission, files and terminals, local where it does not offer them."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acp import Client, RequestError
from acp.schema import (
    AllowedOutcome,
    ClientCapabilities,
    PermissionOption,
    ToolCallUpdate,
)

_CLEANUP_S = 2.0
_TERMINAL_OUTPUT_BYTES = 200_000
Answer = Literal["once", "always", "no"]

_OPTIONS = [
    PermissionOption(option_id="allow_once", name="Allow once", kind="allow_once"),
    PermissionOption(option_id="allow_always", name="Allow always in this session", kind="allow_always"),
    PermissionOption(option_id="reject_once", name="Reject", kind="reject_once"),
]


class EditorError(Exception):
    """The editor or the file system refused; the text is for the model."""


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    output: str
    status: int | None
    signal: str | None = None
    is_timed_out: bool = False


class Editor:
    """The editor as one session sees it."""

    def __init__(self, client: Client, capabilities: ClientCapabilities | None, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        files = capabilities.fs if capabilities else None
        self._reads = bool(files and files.read_text_file)
        self._writes = bool(files and files.write_text_file)
        self.has_terminals = bool(capabilities and capabilities.terminal)

    async def update(self, update: Any) -> None:
        """Show something."""
        await self._client.session_update(session_id=self._session_id, update=update)

    async def ask(self, call: ToolCallUpdate) -> Answer:
        """Ask the user whether a call may go on."""
        reply = await self._client.request_permission(
            session_id=self._session_id, tool_call=call, options=list(_OPTIONS)
        )
        if not isinstance(reply.outcome, AllowedOutcome):
            return "no"
        return {"allow_once": "once", "allow_always": "always"}.get(reply.outcome.option_id, "no")  # type: ignore[return-value]

    async def read(self, path: str) -> str:
        """Return a text file, with the editor's unsaved changes where it shares them. Raises EditorError."""
        if not self._reads or not await asyncio.to_thread(os.path.exists, path):
            return await asyncio.to_thread(_read_file, path)
        try:
            return (await self._client.read_text_file(session_id=self._session_id, path=path)).content
        except RequestError as error:
            raise EditorError(f"{path}: the editor could not read it: {error}") from error

    async def write(self, path: str, content: str) -> None:
        """Replace a text file; folders on the way are made. Raises EditorError."""
        try:
            await asyncio.to_thread(os.makedirs, os.path.dirname(path), exist_ok=True)
        except OSError as error:
            raise EditorError(f"{path}: {error.strerror}") from error
        if not self._writes:
            await asyncio.to_thread(_write_file, path, content)
            return
        try:
            await self._client.write_text_file(session_id=self._session_id, path=path, content=content)
        except RequestError as error:
            raise EditorError(f"{path}: the editor could not write it: {error}") from error

    async def open_terminal(self, command: str, cwd: str) -> str:
        """Start a shell command in a terminal of the editor; return the terminal's id. Raises EditorError."""
        try:
            created = await self._client.create_terminal(
                session_id=self._session_id, command="/bin/sh", args=["-c", command], cwd=cwd,
                output_byte_limit=_TERMINAL_OUTPUT_BYTES,
            )  # fmt: skip
        except RequestError as error:
            raise EditorError(f"the editor could not open a terminal: {error}") from error
        return created.terminal_id

    async def finish_terminal(self, terminal: str, timeout_s: float) -> Ran:
        """Wait for a terminal's command, kill it when it takes too long or this is cancelled, and release it."""
        here = {"session_id": self._session_id, "terminal_id": terminal}
        is_timed_out = False
        has_ended = False
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._client.wait_for_terminal_exit(**here)
                has_ended = True
            except TimeoutError:
                is_timed_out = True
                await self._client.kill_terminal(**here)
                has_ended = True
            result = await self._client.terminal_output(**here)
        except RequestError as error:
            raise EditorError(f"the editor's terminal failed: {error}") from error
        finally:
            # Not awaited: an editor that is stuck must not keep a cancelled turn from ending.
            _background(self._drop_terminal(here, kill=not has_ended))
        ended = result.exit_status
        return Ran(result.output, ended.exit_code if ended else None, ended.signal if ended else None, is_timed_out)

    async def _drop_terminal(self, here: dict[str, str], *, kill: bool) -> None:
        with contextlib.suppress(RequestError, ConnectionError, TimeoutError):
            async with asyncio.timeout(_CLEANUP_S):
                if kill:
                    await self._client.kill_terminal(**here)
                await self._client.release_terminal(**here)


_tasks: set[asyncio.Task[None]] = set()
"""The loop holds tasks weakly."""


def _background(work: Any) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# Its first stdin is a pipe of which the agent holds the other end: when the agent dies in whatever way, the read ends
# and the command's process group with it. The parentheses make the watcher nobody's child, so no `wait` sees it.
_LEASHED = """\
exec 3<&0 </dev/null
( { read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 & )
exec /bin/sh -c "$1" 3<&-
"""


async def run_locally(command: str, cwd: str, timeout_s: float) -> Ran:
    """Run a shell command in a process group of its own, which ends with it and with the agent. Raises EditorError."""
    leash, held = os.pipe()
    try:
        return await _run_leashed(command, cwd, timeout_s, leash)
    finally:
        os.close(held)


async def _run_leashed(command: str, cwd: str, timeout_s: float, leash: int) -> Ran:
    try:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", _LEASHED, "sh", command, cwd=cwd, start_new_session=True,
            stdin=leash, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise EditorError(f"the command cannot start in {cwd}: {error.strerror}") from error
    finally:
        os.close(leash)
    output = bytearray()
    is_timed_out = False
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(_collect(process.stdout, output), process.wait())
    except TimeoutError:
        is_timed_out = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined] # a grandchild may hold the pipe open
    return Ran(output.decode("utf-8", "replace"), process.returncode, is_timed_out=is_timed_out)


async def _collect(stream: asyncio.StreamReader | None, output: bytearray) -> None:
    assert stream is not None
    while chunk := await stream.read(65536):
        output += chunk
        if len(output) > 2 * _TERMINAL_OUTPUT_BYTES:
            del output[:_TERMINAL_OUTPUT_BYTES]


def _read_file(path: str) -> str:
    try:
        if not Path(path).is_file():
            raise EditorError(f"{path}: " + ("not a file" if os.path.exists(path) else "no such file"))
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise EditorError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise EditorError(f"{path}: not a text file (UTF-8)") from None


def _write_file(path: str, content: str) -> None:
    try:
        # The path has been resolved: a symlink at its end was made since then.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(content)
    except OSError as error:
        raise EditorError(f"{path}: {error.strerror}") from error
