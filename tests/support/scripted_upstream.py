"""An OpenAI-compatible endpoint that follows a script: rounds, calls, stalls, broken streams, refusals."""

import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

WAIT_S = 20.0


@dataclass(frozen=True)
class Round:
    """One answer of the script."""

    text: str = ""
    calls: Sequence[tuple[str, str, Any]] = ()
    """Id, name, arguments: an object, or text for what is no JSON."""
    finish: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall: Literal["headers", "body"] | None = None
    """For ever: before the headers, or at `cut`."""
    late_s: float = 0.0
    """Before the headers."""
    pause_s: float = 0.0
    """Before each event of the stream."""
    cut: int | None = None
    """After so many bytes of the body the stream stalls, or breaks where no stall is asked for."""

    def body(self) -> bytes:
        """Return the stream's bytes."""
        if self.status != 200:
            return json.dumps({"error": {"message": "scripted refusal", "type": "x"}}).encode()
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in re.findall(r"\s*\S+", self.text)]
        for index, (call_id, name, arguments) in enumerate(self.calls):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            half = len(text) // 2
            start = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [start]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": p}}]} for p in (text[:half], text[half:])
            ]
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        finish = self.finish or ("tool_calls" if self.calls else "stop")
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
        return b": alive\n\n" + b"".join(b"data: %s\n\n" % json.dumps(c).encode() for c in chunks) + b"data: [DONE]\n\n"


class ScriptedUpstream:
    """The endpoint. Use as a context manager; a request beyond the script is answered with "done"."""

    def __init__(self, *rounds: Round) -> None:
        self.rounds = list(rounds)
        self.requests: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ScriptedUpstream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many have come in all."""
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while len(self.requests) < count:
                assert self._changed.wait(deadline - time.monotonic()), f"{len(self.requests)} of {count} requests came"

    def _take(self, body: dict[str, Any]) -> Round:
        with self._changed:
            self.requests.append(body)
            self._changed.notify_all()
            return self.rounds.pop(0) if self.rounds else Round("done")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self._answer(200, {"Content-Type": "application/json"}, b'{"data": [{"id": "scripted"}, {"id": "b"}]}')

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if len(content) < int(self.headers["Content-Length"]):
                    return  # the agent was killed while it sent this
                body = json.loads(content)
                now = upstream._take(body)
                if now.stall == "headers":
                    upstream._closing.wait()
                    return
                upstream._closing.wait(now.late_s)
                content = now.body()
                events = content[: now.cut].split(b"\n\n") if now.pause_s else [content[: now.cut]]
                self._answer(now.status, {"Content-Type": "text/event-stream", **now.headers}, b"")
                for event in events:
                    upstream._closing.wait(now.pause_s)
                    self.wfile.write(event + b"\n\n" if now.pause_s else event)
                if now.stall == "body":
                    upstream._closing.wait()

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()

        return Handler
