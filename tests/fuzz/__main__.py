"""`python -m tests.fuzz [--seconds N] [NAME …]`: feed targets with mutations until one is a finding.

With `--coverage` atheris chooses what to mutate by what it reaches (pip install '.[fuzz]'); one target at a time then.
"""

import argparse
import importlib
import random
import sys
import time
from pathlib import Path

from tests.fuzz.mutate import Mutator

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"


def main() -> int:
    """Return 1 if there was a finding; what brought it about is in build/fuzz."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help="default: all, and bus and http")
    arguments.add_argument("--seconds", type=float, default=600.0, help="for each; default: 600")
    arguments.add_argument("--count", type=int, default=0, help="of frames or requests, for bus and http")
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments.add_argument("--coverage", action="store_true", help="by atheris")
    given = arguments.parse_args()
    if given.coverage:
        return _explore(given.names[0], given.seconds)
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.wire import WIRES

    failures = 0
    for name in given.names or [*TARGETS, *WIRES]:
        print(f"{name}: seed {given.seed}", flush=True)
        if name in WIRES:
            failures += not WIRES[name](given.seed, given.count)
        else:
            failures += not _feed(name, given.seed, given.seconds)
    return 1 if failures else 0


def _feed(name: str, seed: int, seconds: float) -> bool:
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    mutator, rounds, ends_at = Mutator(target.examples, seed), 0, time.monotonic() + seconds
    while time.monotonic() < ends_at:
        data = mutator.next()
        rounds += 1
        try:
            target.run(data)
        except Exception as error:
            FOUND.mkdir(parents=True, exist_ok=True)
            file = FOUND / f"{name}-{seed}-{rounds}"
            file.write_bytes(data)
            print(f"{name}: {type(error).__name__}: {error}\n  brought about by {file}", flush=True)
            return False
    print(f"{name}: {rounds} mutations without a finding", flush=True)
    return True


def _explore(name: str, seconds: float) -> int:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["common", "cortex", "neuron"]):
        from tests.fuzz.targets import TARGETS
    corpus = FOUND / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(TARGETS[name].examples):
        (corpus / f"example-{number}").write_bytes(example)
    options = [f"-max_total_time={seconds:.0f}", f"-artifact_prefix={FOUND}/{name}-", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], str(corpus), *options], TARGETS[name].run)
    atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
