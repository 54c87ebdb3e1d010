"""An ACP client that follows a script: a real agent process, answers of the editor, stalls, kills."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.harness import ROOT

WAIT_S = 20.0
Params = dict[str, Any]
Handler = Callable[[Params], Awaitable[Any]]
_ALL = {"fs": {"readTextFile": True, "writeTextFile": True}, "terminal": True}


class RpcError(Exception):
    """The agent answered with an error."""

    def __init__(self, error: Params) -> None:
        super().__init__(error["message"])
        self.code = error["code"]


async def stall(_: Params) -> Any:
    """Never answer."""
    await asyncio.Event().wait()


class ScriptedEditor:
    """The editor, with one agent process. Use as an async context manager."""

    def __init__(
        self, folder: Path, url: str, *, shell: str = "", program: Sequence[str] = ("-m", "cortex.acp"),
        capabilities: Params | None = None, **environment: str,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.log_file = folder / "acp.log"
        self.workspace = folder / "work"
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.updates: list[Params] = []
        self.asked: list[tuple[str, Params]] = []
        self.on: dict[str, Handler] = {
            "session/request_permission": self._allow,
            "fs/read_text_file": self._read,
            "fs/write_text_file": self._write,
            "terminal/create": self._create,
            "terminal/wait_for_exit": self._wait_for_exit,
            "terminal/output": self._output,
            "terminal/kill": self._kill,
            "terminal/release": self._release,
        }
        self.terminals: dict[str, tuple[asyncio.subprocess.Process, list[bytes]]] = {}
        self.responses: dict[Any, Params] = {}
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._shell = shell
        self._program = program
        self._capabilities = _ALL if capabilities is None else capabilities
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HELEXA_")}
        self._environment = {
            **clean, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(folder / "data"), "HELEXA_ACP_BASE_URL": url,
            "XDG_CONFIG_HOME": str(folder / "config"), "HELEXA_ACP_LOG_FILE": str(self.log_file), **environment,
        }  # fmt: skip

    async def __aenter__(self) -> "ScriptedEditor":
        command = [sys.executable, *self._program]
        if self._shell:
            command = ["/bin/sh", "-c", f'{self._shell}; exec "$0" "$@"', *command]
        self.process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment,
            stderr=asyncio.subprocess.DEVNULL, limit=1 << 26,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read_lines())
        await self.ask("initialize", protocolVersion=1, clientCapabilities=self._capabilities)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                await asyncio.wait_for(self.process.wait(), 10)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
                raise AssertionError("the agent did not end with its stdin") from None
        await self._reader  # raises what was wrong with stdout
        for process, _output in self.terminals.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def kill(self) -> None:
        """SIGKILL the agent."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def disconnect(self) -> int:
        """Close the agent's stdin and return its exit status. Raises TimeoutError when it stays."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), WAIT_S)

    def send_line(self, line: bytes) -> None:
        """Write bytes as they are."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")

    def start(self, method: str, **params: Any) -> "asyncio.Future[Any]":
        """Send a request; return what will hold its result."""
        number = len(self._pending) + 1
        self._pending[number] = asyncio.get_running_loop().create_future()
        self.send_line(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode())
        return self._pending[number]

    async def ask(self, method: str, **params: Any) -> Any:
        """Send a request and return its result. Raises RpcError."""
        return await asyncio.wait_for(self.start(method, **params), WAIT_S)

    def notify(self, method: str, **params: Any) -> None:
        """Send a notification."""
        self.send_line(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    async def new(self) -> str:
        """Begin a session; return its id."""
        return str((await self.ask("session/new", cwd=str(self.workspace), mcpServers=[]))["sessionId"])

    def prompt(self, session: str, text: str) -> "asyncio.Future[Any]":
        """Send a prompt."""
        return self.start("session/prompt", sessionId=session, prompt=[{"type": "text", "text": text}])

    async def stop_reason(self, session: str, text: str) -> str:
        """Send a prompt and return its stop reason."""
        return str((await asyncio.wait_for(self.prompt(session, text), WAIT_S))["stopReason"])

    def session_file(self, session: str) -> Path:
        """Where the agent keeps a session."""
        return self.folder / "data" / "helexa-acp" / "sessions" / f"{session}.json"

    def history(self, session: str) -> list[Params]:
        """Return the history on disk."""
        return list(json.loads(self.session_file(session).read_text())["history"])

    def said(self, kind: str = "agent_message_chunk") -> str:
        """Return the text of all updates of a kind."""
        return "".join(u["content"]["text"] for u in self.updates if u["sessionUpdate"] == kind)

    async def wait_until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait until something is true, looking after each message from the agent."""
        deadline = time.monotonic() + WAIT_S
        while not is_true():
            assert time.monotonic() < deadline, f"never: {what}"
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.05)

    async def wait_asked(self, method: str, count: int = 1) -> None:
        """Wait until the agent has asked for something."""
        await self.wait_until(lambda: sum(m == method for m, _ in self.asked) >= count, method)

    async def _read_lines(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            message = json.loads(line)
            assert message["jsonrpc"] == "2.0", line
            self._changed.set()
            if "method" not in message:
                self.responses[message["id"]] = message
                future = self._pending.get(message["id"])
                if future is not None and not future.done():
                    if "error" in message:
                        future.set_exception(RpcError(message["error"]))
                    else:
                        future.set_result(message["result"])
            elif message["method"] == "session/update":
                self.updates.append(message["params"]["update"])
            else:
                self.asked.append((message["method"], message["params"]))
                self._tasks.add(asyncio.create_task(self._serve(message)))

    async def _serve(self, message: Params) -> None:
        result = await self.on[message["method"]](message["params"])
        self.send_line(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode())

    async def _allow(self, _: Params) -> Any:
        return {"outcome": {"outcome": "selected", "optionId": "allow_once"}}

    async def _read(self, params: Params) -> Any:
        return {"content": await asyncio.to_thread(Path(params["path"]).read_text)}

    async def _write(self, params: Params) -> Any:
        await asyncio.to_thread(Path(params["path"]).write_text, params["content"])
        return {}

    async def _create(self, params: Params) -> Any:
        process = await asyncio.create_subprocess_exec(
            params["command"], *params["args"], cwd=params["cwd"], stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        terminal = f"term{len(self.terminals)}"
        self.terminals[terminal] = (process, [])
        return {"terminalId": terminal}

    async def _wait_for_exit(self, params: Params) -> Any:
        process, output = self.terminals[params["terminalId"]]
        output.append((await process.communicate())[0])
        return {"exitCode": process.returncode}

    async def _output(self, params: Params) -> Any:
        process, output = self.terminals[params["terminalId"]]
        text = b"".join(output).decode()
        return {"output": text, "truncated": False, "exitStatus": {"exitCode": process.returncode}}

    async def _kill(self, params: Params) -> Any:
        with contextlib.suppress(ProcessLookupError):
            self.terminals[params["terminalId"]][0].kill()
        return {}

    async def _release(self, params: Params) -> Any:
        return {}
