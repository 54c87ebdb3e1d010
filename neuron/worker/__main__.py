"""One worker process: owns one device, runs the engine loop on it."""

import argparse
import importlib
import logging
import os
import signal
import sys
from typing import cast

from common import log
from neuron.process.breadcrumb import Breadcrumb
from neuron.process.lifeline import NO_ENGINE, ORPHANED, attach
from neuron.worker.bus import Bus
from neuron.worker.engine import DeviceLost, Engine
from neuron.worker.loop import Loop

DEVICE_LOST = 70
"""Exit status after an error that only a new process can mend."""


def main() -> None:
    """Run until told to stop."""
    args = _parse()
    attach(args.lifeline, args.supervisor_pid)
    log.setup(f"worker {args.device}", format=args.log_format, level=args.log_level)
    module = "neuron.worker.llama_engine" if args.engine == "llama" else args.engine
    try:
        engine = cast(Engine, importlib.import_module(module).create_engine(args.threads, args.kind))
    except (ImportError, OSError, RuntimeError) as error:  # a shared library that does not load is any of these
        logging.getLogger(__name__).critical("engine '%s' cannot be loaded: %s", args.engine, error)
        sys.exit(NO_ENGINE)
    bus = Bus(args.line)
    budget_s = args.step_budget_ms / 1000
    places = [int(place) for place in args.places.split(",")]
    loop = Loop(
        engine,
        bus,
        incarnation=args.incarnation,
        device=args.device,
        step_budget_s=budget_s,
        places=places,
        crumb=Breadcrumb(args.breadcrumb),
    )
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    try:
        loop.run()
    except DeviceLost as error:
        logging.getLogger(__name__).critical("the device is lost: %s", error)
        sys.stderr.flush()
        os._exit(DEVICE_LOST)  # freeing what a broken driver holds may hang or abort
    except EOFError:
        os._exit(ORPHANED)
    bus.close()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m neuron.worker", description=__doc__)
    parser.add_argument("--line", type=int, required=True, help="file descriptor of the socket to the supervisor")
    parser.add_argument("--incarnation", required=True)
    parser.add_argument("--device", required=True, help="UUID")
    parser.add_argument("--kind", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--places", default="0", help="which visible GPU each of its devices is, separated by commas")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True, help="file descriptor of the supervisor's pipe")
    parser.add_argument("--supervisor-pid", type=int, required=True)
    parser.add_argument("--breadcrumb", type=int, help="file descriptor of what it leaves behind")
    parser.add_argument("--engine", default="llama", help="`llama`, or a module with create_engine")
    parser.add_argument("--step-budget-ms", type=int, default=345)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    return parser.parse_args()


if __name__ == "__main__":
    main()
