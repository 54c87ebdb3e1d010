"""`python -m neuron.prep`: started by the supervisor."""

import argparse
import importlib
import logging
import signal
import socket
import sys

from common import log
from common.frames import FrameSocket
from neuron.prep.service import serve
from neuron.process.lifeline import NO_ENGINE, ORPHANED, attach


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(prog="neuron.prep", description=__doc__)
    parser.add_argument("--line", type=int, required=True, help="file descriptor of the socket to the supervisor")
    parser.add_argument("--incarnation", required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--supervisor-pid", type=int, required=True)
    parser.add_argument("--engine", default="llama", help="`llama`, or a module with open_vocabulary")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text", choices=("text", "json"))
    arguments = parser.parse_args()
    attach(arguments.lifeline, arguments.supervisor_pid)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log.setup("prep", format=arguments.log_format, level=arguments.log_level)
    name = "neuron.prep.llama_vocabulary" if arguments.engine == "llama" else arguments.engine
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a shared library that does not load is any of these
        logging.getLogger(__name__).critical("engine '%s' cannot be loaded: %s", arguments.engine, error)
        return NO_ENGINE
    build = module.build() if hasattr(module, "build") else arguments.engine
    line = FrameSocket(socket.socket(fileno=arguments.line))
    try:
        serve(line, arguments.incarnation, build, module.open_vocabulary)
    except EOFError:
        return ORPHANED
    finally:
        line.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
