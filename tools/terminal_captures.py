"""Capture terminal programs in tmux, in front of a small fleet under load: tools/terminal_captures.py [FOLDER]."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.showcase import showcase  # noqa: E402

SIZE = ("-x", "150", "-y", "34")


def tmux(socket: str, *arguments: str) -> str:
    """Run tmux on a server of our own; return what it prints."""
    done = subprocess.run(["tmux", "-L", socket, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def capture(socket: str, name: str, command: str, *keys: tuple[float, str]) -> str:
    """Run a command in a terminal, type what is to be typed after so many seconds, and return the screen."""
    tmux(socket, "new-session", "-d", "-s", name, *SIZE, "-e", f"PYTHONPATH={ROOT}", command)
    for wait_s, text in keys:
        time.sleep(wait_s)
        if text:
            tmux(socket, "send-keys", "-t", name, text, "Enter")
    screen = tmux(socket, "capture-pane", "-t", name, "-p")
    tmux(socket, "kill-session", "-t", name)
    return "\n".join(line.rstrip() for line in screen.rstrip().split("\n")) + "\n"


def main(folder: Path) -> None:
    """Take each picture."""
    folder.mkdir(parents=True, exist_ok=True)
    python, socket = sys.executable, f"helexa-{os.getpid()}"
    with tempfile.TemporaryDirectory() as base, showcase(Path(base)) as show, show.load(6):
        try:
            tmux(socket, "new-session", "-d", "-s", "keep", "sleep 600")
            top = f"{python} -m neuron.ctl --endpoint {show.neurons['beast'].endpoint} top"
            (folder / "neuronctl-top.txt").write_text(capture(socket, "top", top, (6.0, "")))
            chat = f"{python} -m cortex chat qwen3-32b --url {show.gateway.url}"
            typed = ((2.0, "Why one process for each GPU?"), (3.0, "And if the driver faults?"), (4.0, ""))
            (folder / "cortex-chat.txt").write_text(capture(socket, "chat", chat, *typed))
        finally:
            tmux(socket, "kill-server")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/captures"))
