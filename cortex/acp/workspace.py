"""Which paths belong to a session, and who may touch what in which mode. Decisions only; `realpath` is all the I/O."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

Access = Literal["read", "write", "run"]
Verdict = Literal["allow", "ask", "deny"]

MODES = {
    "default": ("Default", "Asks before writing or running anything"),
    "plan": ("Plan", "Reads only; may write plans inside .helexa/plans"),
    "bypass": ("Bypass permissions", "Never asks"),
}
PLAN_FOLDER = Path(".helexa") / "plans"


class PathError(Exception):
    """A path cannot be used; the text is for the model."""


@dataclass(frozen=True)
class Workspace:
    """The folders of a session."""

    cwd: str
    directories: tuple[str, ...] = ()

    def resolve(self, path: str) -> str:
        """Return the absolute path with every `..` and symlink followed. Raises PathError."""
        if not path or "\0" in path:
            raise PathError("path: must not be empty or contain NUL")
        if path.startswith("file://"):
            path = unquote(urlsplit(path).path)
        return os.path.realpath(os.path.join(self.cwd, os.path.expanduser(path)))

    def holds(self, resolved: str) -> bool:
        """Say whether a resolved path lies in one of the session's folders."""
        return any(_is_inside(resolved, os.path.realpath(f)) for f in (self.cwd, *self.directories))

    def has(self, resolved: str) -> bool:
        """Say whether a resolved path exists in one of the session's folders."""
        return self.holds(resolved) and os.path.exists(resolved)

    def is_plan(self, resolved: str) -> bool:
        """Say whether a resolved path lies in the plan folder, which itself must not lead elsewhere."""
        root = os.path.realpath(self.cwd)
        folder = os.path.join(root, PLAN_FOLDER)
        return os.path.realpath(folder) == folder and _is_inside(resolved, folder) and resolved != folder


def has_moved(resolved: str) -> bool:
    """Say whether a path that was resolved before leads elsewhere now."""
    return os.path.realpath(resolved) != resolved


def judge(mode: str, access: Access, resolved: str | None, workspace: Workspace) -> tuple[Verdict, str]:
    """Return whether a tool may go on, and why not."""
    if mode == "bypass":
        return "allow", ""
    if access == "read" and (resolved is None or workspace.holds(resolved)):
        return "allow", ""
    if mode == "plan":
        if access == "write" and resolved is not None and workspace.is_plan(resolved):
            return "allow", ""
        if access != "read":
            return "deny", f"plan mode only reads; it writes inside {PLAN_FOLDER} alone, and runs nothing"
    return "ask", ""


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
