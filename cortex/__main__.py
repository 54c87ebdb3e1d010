"""`cortex`: the gateway and the fleet's command line."""

import argparse
import sys
from pathlib import Path

from common import revision
from common.errors import ConfigError
from common.revision import ShowVersion
from common.shell_completion import SHELLS, write_script
from cortex.cli import api_keys, bench, captures, chat, clients, join, keys, orders, report, usage

DEFAULT_CONFIGS = ("/etc/cortex/cortex.toml", "/etc/cortex/cortex.yaml")

_EPILOG = """\
examples:
  cortex dev                                a neuron and a gateway on this machine, with the demo model
  cortex dev --model ~/models/qwen.gguf     the same with your own file
  cortex serve --config cortex.toml         the gateway
  cortex doctor                             what is wrong here, and what to do
  cortex import llama-swap config.yaml      what you had becomes profiles and aliases
  cortex keys create --comment ada          a key for somebody; from then on one is needed
  cortex join NAME ADDRESS KEY INVITATION   a GPU host more: the line that `neuron invite` prints there
  cortex usage --days 7                     what each key has used
  CORTEX_ADMIN_KEY=… cortex status          nodes, devices, memory and models of the fleet
  cortex chat MODEL                         talk to it, with its speed
  cortex setup claude --write               settings of Claude Code; also codex, zed, opencode
  cortex bench MODEL                        speed under more and more clients
  CORTEX_ADMIN_KEY=… cortex load MODEL      load a model where the fleet would place it

exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 nobody answers
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="cortex",
        description="One OpenAI-compatible address in front of many GPU hosts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the gateway", description="Run the gateway until SIGTERM or Ctrl-C.")
    serve.add_argument("--config", type=Path, metavar="FILE", help=f"default: {' or '.join(DEFAULT_CONFIGS)}")

    check = commands.add_parser(
        "check-config",
        help="are the files usable, and what would the fleet do with them",
        description="Check the gateway's files, ask the neurons, and say where each model would be placed.",
    )
    check.add_argument("--config", type=Path, metavar="FILE", help=f"default: {' or '.join(DEFAULT_CONFIGS)}")
    check.add_argument("--explain", metavar="MODEL", help="show the ranking of neurons for one model, with its reasons")

    looks = {
        "status": "nodes, devices, memory, models",
        "nodes": "a line for each neuron",
        "models": "models of the fleet",
    }
    for name, text in looks.items():
        command = commands.add_parser(name, help=text, description=f"Show {text}, as the gateway sees them.")
        command.add_argument("--watch", "-w", type=_interval, nargs="?", const=2.0, metavar="SECONDS",
                             help="again and again, until Ctrl-C (default: every 2 s)")  # fmt: skip
        orders.add_gateway(command)
    explain = commands.add_parser(
        "explain",
        help="where requests for a model go, where it would be loaded, and why",
        description="Ask the neurons, and rank them for one model as a gateway does, with the reasons.",
    )
    explain.add_argument("model", metavar="MODEL", help="id or alias")
    explain.add_argument("--config", type=Path, metavar="FILE", help=f"default: {' or '.join(DEFAULT_CONFIGS)}")
    for module in (chat, clients, report, bench):
        module.add_parser(commands)
    captures.add_parsers(commands, f"default: {' or '.join(DEFAULT_CONFIGS)}")
    completion = commands.add_parser(
        "completion", help="a script for the shell", description="Print a completion script for a shell."
    )
    completion.add_argument("shell", choices=SHELLS, help="whose script is printed")
    orders.add_parsers(commands)

    dev = commands.add_parser(
        "dev",
        help="a neuron and a gateway in the foreground, for a laptop",
        description="Start a neuron (on the GPUs it finds, else the CPU) and a gateway, and load one model.",
    )
    dev.add_argument("--model", type=Path, metavar="FILE.gguf", help="instead of the demo model")
    dev.add_argument("--port", type=int, default=31313, help="of the API (default: 31313)")

    doctor = commands.add_parser(
        "doctor",
        help="what keeps the gateway from serving, and what to do",
        description="Check installation, configuration, keys, port, and every neuron.",
    )
    doctor.add_argument("--config", type=Path, metavar="FILE", help=f"default: {' or '.join(DEFAULT_CONFIGS)}")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    api_keys.add_parsers(commands, f"default: {' or '.join(DEFAULT_CONFIGS)}")
    usage.add_parser(commands, f"default: {' or '.join(DEFAULT_CONFIGS)}")
    keys.add_parsers(commands, f"default: {' or '.join(DEFAULT_CONFIGS)}")
    join.add_parser(commands, f"default: {' or '.join(DEFAULT_CONFIGS)}")

    importing = commands.add_parser(
        "import",
        help="profiles and aliases from another program's file",
        description="Turn another program's file into a models file, and list what has no equivalent.",
    )
    importing.add_argument("kind", choices=("llama-swap", "llama-server-preset", "ollama"), help="whose file it is")
    importing.add_argument("file", type=Path, metavar="FILE", help="config.yaml, presets.ini or Modelfile")
    importing.add_argument("--output", "-o", type=Path, metavar="FILE", help="a new file; default: print it")
    importing.add_argument("--id", metavar="NAME", help="ollama: the model's id; default: from the file's name")

    commands.add_parser("version", help="version of this program")
    return parser


def main() -> int:
    """Run the program; return its exit status."""
    arguments = build_parser().parse_args()
    try:
        match arguments.command:
            case "serve":
                return _serve(arguments.config or find_config())
            case "keygen":
                return keys.run_keygen(arguments.config or find_config())
            case "join":
                return join.run(arguments, arguments.config or find_config())
            case "trust":
                return keys.run_trust(arguments, arguments.config or find_config())
            case "keys":
                return api_keys.run(arguments, arguments.config or find_config())
            case "usage":
                return usage.run(arguments, arguments.config or find_config())
            case "version":
                print(revision.describe("cortex"))
                return 0
            case "dev":
                from cortex.cli.dev import run_dev

                return run_dev(arguments.model, arguments.port)
            case "import":
                from cortex.cli.importing import run_import

                return run_import(arguments.kind, arguments.file, arguments.output, arguments.id)
            case "check-config":
                return _check(arguments.config or find_config(), arguments.explain)
            case "explain":
                return _check(arguments.config or find_config(), arguments.model)
            case "capture":
                return captures.run_capture(arguments, arguments.config or find_config())
            case "replay":
                return captures.run_replay(arguments, arguments.config or find_config())
            case command if command in _TALKS:
                return _TALKS[command](arguments)
            case "completion":
                print(write_script(arguments.shell, build_parser()), end="")
                return 0
            case command if command in orders.HELP:
                return orders.order(command, arguments)
            case "doctor":
                from cortex.cli.doctor import run_doctor

                return run_doctor(arguments.config or find_config(), as_json=arguments.json)
            case "import":
                from cortex.cli.importing import run_import

                return run_import(arguments.kind, arguments.file, arguments.output, arguments.id)
            case command:
                from cortex.cli.fleet import show

                return show(command, arguments.url, arguments.config, as_json=arguments.json, watch_s=arguments.watch)
    except ConfigError as error:
        print(f"cortex: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0  # the reader, a pager for example, has seen enough


_TALKS = {"chat": chat.run, "setup": clients.run, "report": report.run, "bench": bench.run}


def _interval(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 3600")
    return value


def find_config() -> Path:
    """Return the configuration file of an installed gateway. Raises ConfigError."""
    found = [Path(p) for p in DEFAULT_CONFIGS if Path(p).is_file()]
    if len(found) > 1:
        raise ConfigError(f"both {' and '.join(map(str, found))} exist; remove one, or use --config FILE")
    if not found:
        raise ConfigError(f"no configuration file: neither {' nor '.join(DEFAULT_CONFIGS)} exists; use --config FILE")
    return found[0]


def _check(config: Path, explained: str | None) -> int:
    try:
        from cortex.cli.check import check
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; install the gateway: pip install 'helexa[gateway]'") from None
    return check(config, explained)


def _serve(config: Path) -> int:
    try:
        from cortex.arbiter import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; install the gateway: pip install 'helexa[gateway]'") from None
    return serve(config)


if __name__ == "__main__":
    sys.exit(main())
