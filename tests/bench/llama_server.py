"""llama.cpp's own server as the other side of a comparison."""

import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx

from tests.bench.llama_tools import build
from tests.support.harness import free_port

START_S = 60.0


class LlamaServer:
    """A running llama-server with one model. Use as a context manager."""

    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        """`options` are added to its command line."""
        self.url = f"http://127.0.0.1:{free_port()}"
        folder.mkdir(parents=True, exist_ok=True)
        port = self.url.rpartition(":")[2]
        with (folder / "llama-server.log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(build() / "llama-server"), "-m", str(model), "--port", port, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError((folder / "llama-server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "LlamaServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
