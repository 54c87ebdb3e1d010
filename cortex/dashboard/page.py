"""GET / and the files of the page. They are part of this package: no build step, nothing from another host."""

import hashlib
from importlib import resources

import falcon
import falcon.asgi

from common import __version__
from cortex.api.front import not_found

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: run its own script, and speak to this gateway. Text that a model writes is never either."""
MEDIA_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
               "js": "text/javascript; charset=utf-8",
               "svg": "image/svg+xml"}  # fmt: skip
"""By the end of a file's name."""


class Files:
    """GET /dashboard/{name}."""

    def __init__(self) -> None:
        folder = resources.files("cortex.dashboard") / "static"
        self._files = {f.name: f.read_bytes() for f in folder.iterdir() if f.name.rpartition(".")[2] in MEDIA_TYPES}
        self._tags = {n: f'"{hashlib.sha256(data).hexdigest()[:16]}"' for n, data in self._files.items()}

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, name: str) -> None:
        """Answer with a file."""
        if name not in self._files:
            raise not_found(req.path)
        self.give(name, req, resp)

    def give(self, name: str, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer with a file, or that the browser's copy is still good."""
        resp.content_type = MEDIA_TYPES[name.rpartition(".")[2]]
        resp.set_headers(
            {
                "content-security-policy": POLICY,
                "x-content-type-options": "nosniff",
                "x-frame-options": "DENY",
                "referrer-policy": "no-referrer",
                "cross-origin-opener-policy": "same-origin",
                "cache-control": "no-cache",
                "etag": self._tags[name],
            }
        )
        if req.get_header("if-none-match") == self._tags[name]:
            resp.status = falcon.HTTP_304
        else:
            resp.data = self._files[name]


class Root:
    """GET and HEAD /: the page for a browser, a line of text for clients that look here first."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Answer."""
        resp.set_header("vary", "accept")
        if "text/html" in (req.get_header("accept") or ""):
            self._files.give("index.html", req, resp)
            return
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = f"cortex {__version__}: the OpenAI API is at /v1, its models at /v1/models\n"

    on_head = on_get
