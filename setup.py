"""Everything is in setup.cfg; what is built here beyond it is the revision of the source, which only git knows."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PLACEHOLDER = "$Format:%h$"


class BuildWithRevision(build_py):
    """Copies modules as ever, and writes into common/revision.py what `git archive` would."""

    def run(self) -> None:
        """Build."""
        super().run()
        target = Path(self.build_lib, "common/revision.py")
        root = Path(__file__).parent
        if not (root / ".git").exists() or not target.exists():
            return
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        try:
            revision = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return
        target.write_text(target.read_text(encoding="utf-8").replace(PLACEHOLDER, revision, 1), encoding="utf-8")


setup(cmdclass={"build_py": BuildWithRevision})
