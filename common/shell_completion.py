"""Completion scripts for bash, zsh and fish, made from a command line's own grammar, so that they cannot differ."""

import argparse
import shlex
from typing import Literal

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")


def write_script(shell: Shell, parser: argparse.ArgumentParser) -> str:
    """Return the script that completes the parser's commands, options and choices."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parser)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return options, and the choices of arguments by position."""
    words = [o for a in parser._actions if a.help != argparse.SUPPRESS for o in a.option_strings]
    for action in parser._actions:
        if not action.option_strings and action.choices and not isinstance(action, argparse._SubParsersAction):
            words += map(str, action.choices)
    return words


def _bash(parser: argparse.ArgumentParser) -> str:
    name, commands = parser.prog, _commands(parser)
    cases = "".join(
        f"        {command}) words={shlex.quote(' '.join(_words(sub)))} ;;\n" for command, sub in commands.items()
    )
    top = shlex.quote(" ".join([*commands, *_words(parser)]))
    return f"""\
# bash completion of {name}: eval "$({name} completion bash)"
_{name}() {{
    local word words="" current="${{COMP_WORDS[COMP_CWORD]}}" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
{cases}            *) continue ;;
        esac
        break
    done
    [ -n "$words" ] || words={top}
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _{name} {name}
"""


def _zsh(parser: argparse.ArgumentParser) -> str:
    name = parser.prog
    return f"""\
# zsh completion of {name}: eval "$({name} completion zsh)"
autoload -U +X bashcompinit && bashcompinit
{_bash(parser).split(chr(10), 1)[1]}"""


def _fish(parser: argparse.ArgumentParser) -> str:
    name, commands = parser.prog, _commands(parser)
    lines = [f"# fish completion of {name}: {name} completion fish | source"]
    names = " ".join(commands)
    for command, sub in commands.items():
        about = shlex.quote(sub.description or "")
        lines.append(f"complete -c {name} -n 'not __fish_seen_subcommand_from {names}' -a {command} -d {about}")
        for action in sub._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    lines.append(f"complete -c {name} -n '__fish_seen_subcommand_from {command}' -l {option[2:]}")
            if action.choices and not action.option_strings:
                values = shlex.quote(" ".join(map(str, action.choices)))
                lines.append(f"complete -c {name} -f -n '__fish_seen_subcommand_from {command}' -a {values}")
    return "\n".join(lines) + "\n"
