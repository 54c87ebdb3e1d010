"""A small Hugging Face hub on loopback: repositories of files, tokens, ranges, and a transfer that stops half-way."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "a" * 40
TOKEN = "hf_a-token-of-the-tests"


@dataclass
class Hub:
    """What is on the hub, and what was asked of it."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Repositories that are given to holders of TOKEN only."""
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    """By file: a size that the listing claims instead of the true one."""
    claimed_sums: dict[str, str] = field(default_factory=dict)
    stop_at: int | None = None
    """The next transfer sends this many bytes and then nothing until `go_on` is set."""
    stopped: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    transfers: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, Range header) of every GET of a file."""
    url: str = ""

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """Return variables that send the library here."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return (
            found | {"HF_HOME": str(cache.parent), "HF_HUB_DISABLE_XET": "1"} | ({"HF_TOKEN": token} if token else {})
        )


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if self._may_see(repo):
                self._json(self._describe(repo))
        else:
            self._file()

    def _may_see(self, repo: str) -> bool:
        if repo not in self.state.repositories:
            self._refuse(401, "RepoNotFound", "Repository Not Found")
            return False
        if repo in self.state.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(403, "GatedRepo", "Access to model is restricted")
            return False
        return True

    def _describe(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.state.repositories[repo].items():
            size = self.state.claimed_sizes.get(name, len(content))
            lfs = {"size": size, "sha256": self._sum(name, content), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": size, "blobId": "0", "lfs": lfs})
        return {"_id": "1", "id": repo, "modelId": repo, "sha": REVISION, "siblings": siblings, "tags": []}

    def _sum(self, name: str, content: bytes) -> str:
        return self.state.claimed_sums.get(name, hashlib.sha256(content).hexdigest())

    def _file(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if not self._may_see(repo):
            return
        content = self.state.repositories[repo].get(name)
        if content is None or parts[2] != "resolve":
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{self._sum(name, content)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.state.transfers.append((name, wanted))
            self._send(content[start:])

    def _send(self, content: bytes) -> None:
        stop_at, self.state.stop_at = self.state.stop_at, None
        if stop_at is not None:
            self.wfile.write(content[:stop_at])
            self.wfile.flush()
            self.state.stopped.set()
            self.state.go_on.wait(30)
            self.close_connection = True
            return
        self.wfile.write(content)

    def _json(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, text: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", "0")
        self.end_headers()
