"""JSON-RPC lines on stdin and stdout, and nothing else on stdout, whatever is printed."""

import asyncio
import json
import os
import sys
from typing import Any

from acp import RequestError

_LONGEST_LINE = 64 * 1024 * 1024
_CHUNK = 256 * 1024


def claim_stdout() -> int:
    """Return a descriptor of stdout of our own; what anything prints from now on goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.set_inheritable(own, False)
    os.dup2(2, 1)
    return own


class Lines:
    """The SDK's transport over two streams; a line that is no message is answered with an error and skipped."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._is_closed = False

    @classmethod
    async def open(cls, source: int, sink: int) -> "Lines":
        """Take two descriptors, which must be pipes, sockets or terminals."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", 0))
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(sink, "wb", 0)
        )
        return cls(reader, asyncio.StreamWriter(transport, protocol, None, loop))

    async def send(self, message: dict[str, Any]) -> None:
        """Write one message. Raises ConnectionError when nobody reads any more."""
        if self._is_closed or self._writer.is_closing():
            raise ConnectionError("the editor is gone")
        # Errors of validation carry the offending values, of any type.
        line = json.dumps(message, ensure_ascii=True, separators=(",", ":"), default=str)
        self._writer.write(line.encode("ascii") + b"\n")
        await self._writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message, None at the end."""
        while True:
            line = await self._line()
            if line is None:
                return None
            if not line.strip():
                continue
            try:
                message = json.loads(line)
            except (ValueError, RecursionError) as error:
                await self._refuse(None, RequestError.parse_error({"details": str(error)}))
                continue
            problem = _problem(message)
            if problem is None:
                return _modern(message)
            request_id = message.get("id") if isinstance(message, dict) else None
            await self._refuse(request_id, RequestError.invalid_request({"details": problem}))

    async def close(self) -> None:
        """Write nothing more."""
        self._is_closed = True
        self._writer.close()

    async def _refuse(self, request_id: Any, error: RequestError) -> None:
        known = request_id if isinstance(request_id, (str, int)) else None
        await self.send({"jsonrpc": "2.0", "id": known, "error": error.to_error_obj()})

    async def _line(self) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _LONGEST_LINE:
                raise ConnectionError(f"a line of more than {_LONGEST_LINE} bytes")
            chunk = await self._reader.read(_CHUNK)
            if not chunk:
                last = bytes(self._buffer)
                self._buffer.clear()
                return last or None
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _problem(message: Any) -> str | None:
    if not isinstance(message, dict):
        return "a message is a JSON object"
    if "id" in message and not isinstance(message["id"], (str, int, type(None))):
        return "id: must be text or a number"
    if "method" not in message:
        return None if "result" in message or "error" in message else "method: missing"
    return None if isinstance(message["method"], str) else "method: must be text"


def _modern(message: dict[str, Any]) -> dict[str, Any]:
    """Read session/set_model, which config options have replaced, as one of those."""
    params = message.get("params")
    if message.get("method") != "session/set_model" or not isinstance(params, dict):
        return message
    option = {"sessionId": params.get("sessionId"), "configId": "model", "value": params.get("modelId")}
    return {**message, "method": "session/set_config_option", "params": option}
