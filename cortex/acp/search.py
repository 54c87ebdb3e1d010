"""Looking through folders, away from the event loop and stoppable."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cortex.acp.editor import EditorError

_SKIPPED = frozenset({".git", ".hg", ".svn", "node_modules", ".venv", "__pycache__", ".mypy_cache", "target"})
_MOST_HITS = 200
_MOST_NAMES = 1000
_LARGEST_FILE = 2_000_000
_LONGEST_LINE = 300
_LONGEST_SEARCH_S = 60.0


def list_folder(path: str) -> str:
    """Return a folder's names, folders with a slash. Raises EditorError."""
    try:
        with os.scandir(path) as rows:
            names = sorted(r.name + ("/" if r.is_dir() else "") for r in rows)
    except OSError as error:
        raise EditorError(f"{path}: {error.strerror}") from error
    more = f"\n[{len(names) - _MOST_NAMES} more]" if len(names) > _MOST_NAMES else ""
    return ("\n".join(names[:_MOST_NAMES]) or "[empty]") + more


class Search:
    """One search, for plain text: no model can write a pattern that never ends."""

    def __init__(self, folder: str, text: str, within: Callable[[str], bool]) -> None:
        if not text:
            raise EditorError("text: must not be empty")
        self._text = text
        self._folder = folder
        self._within = within if within(folder) else lambda _: True
        self._stopped = threading.Event()

    async def run(self) -> str:
        """Return the lines found, as file:line: text. Raises EditorError."""
        try:
            async with asyncio.timeout(_LONGEST_SEARCH_S):
                return await asyncio.to_thread(self._run)
        except TimeoutError:
            raise EditorError(f"{self._folder}: not done in {_LONGEST_SEARCH_S:g} s; search a smaller folder") from None
        finally:
            self._stopped.set()

    def _run(self) -> str:
        if not os.path.exists(self._folder):
            raise EditorError(f"{self._folder}: no such file or folder")
        hits: list[str] = []
        for path in self._files():
            if self._stopped.is_set():
                break
            hits += self._hits(path)
            if len(hits) > _MOST_HITS:
                return "\n".join(hits[:_MOST_HITS]) + f"\n[more than {_MOST_HITS} lines; narrow the search]"
        return "\n".join(hits) or "[nothing found]"

    def _files(self) -> Iterator[Path]:
        if os.path.isfile(self._folder):
            yield Path(self._folder)
            return
        for root, folders, names in os.walk(self._folder):
            folders[:] = sorted(f for f in folders if f not in _SKIPPED)
            for name in sorted(names):
                path = Path(root, name)
                # A link in the tree must not show what lies outside it.
                if path.is_file() and self._within(os.path.realpath(path)):
                    yield path

    def _hits(self, path: Path) -> list[str]:
        try:
            if path.stat().st_size > _LARGEST_FILE:
                return []
            content = path.read_bytes()
        except OSError:
            return []  # gone, or not ours to read: a search passes by
        if b"\0" in content[:8192]:
            return []
        name = os.path.relpath(path, self._folder) if path != Path(self._folder) else str(path)
        lines = enumerate(content.decode("utf-8", "replace").splitlines(), 1)
        return [f"{name}:{n}: {line[:_LONGEST_LINE]}" for n, line in lines if self._text in line]
