"""Completion scripts say what the command lines take."""

import shutil
import subprocess

import pytest

from common.shell_completion import SHELLS, write_script
from neuron.ctl.__main__ import build_parser


def complete(*words: str) -> list[str]:
    """Return what bash offers for a command line whose last word is being typed."""
    script = write_script("bash", build_parser())
    ask = f'COMP_WORDS=({" ".join(words)} ""); COMP_CWORD={len(words)}; _neuronctl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    bash = shutil.which("bash") or "/bin/bash"
    done = subprocess.run([bash, "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices() -> None:
    assert {"status", "load", "requests", "events"} <= set(complete("neuronctl"))
    assert {"--device", "--json"} <= set(complete("neuronctl", "load"))
    assert "cancel" in complete("neuronctl", "requests")
    assert {"bash", "zsh", "fish"} <= set(complete("neuronctl", "--json", "completion"))
    assert "--follow" in complete("neuronctl", "events", "--last", "3")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shells_script_names_every_command(shell: str) -> None:
    script = write_script(shell, build_parser())  # type: ignore[arg-type]
    for command in ("top", "ping", "logs", "restart"):
        assert command in script
