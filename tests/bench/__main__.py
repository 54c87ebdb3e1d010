"""`make bench`: print every figure, and write build/bench/NAME.json; `make bench-engine` writes a page, too."""

import sys

from tests.bench import (
    access,
    against_llama,
    agents,
    curve,
    dialects,
    engine,
    first_byte,
    fleet,
    gateway,
    json_schema,
    long_prompt,
    memory,
    observability,
    page,
    report,
    soak,
    start,
    swap,
)


def main() -> int:
    """Run the benchmarks named on the command line, or those that need nothing but this repository."""
    own = {
        "dialects": dialects.measure,
        "access": access.measure_cost,
        "slow_clients": access.measure_slow_clients,
        "curve": curve.measure,
        "engine": engine.measure,
        "first_byte": first_byte.measure,
        "fleet": fleet.measure,
        "long_prompt": long_prompt.measure,
        "observability": observability.measure,
        "start": start.measure,
        "swap": swap.measure,
        "warm_reload": memory.measure_reload,
        "soak": soak.measure,
    }
    paired = {
        "llama_decode": against_llama.measure_decode,
        "llama_http": against_llama.measure_http,
        "agents": agents.measure,
        "json_schema": json_schema.measure,
        "idle_neighbours": memory.measure_idle_neighbours,
    }
    benchmarks = own | paired | {"gateway": gateway.measure}
    names = sys.argv[1:] or list(own)
    unknown = [n for n in names if n not in benchmarks]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are: {', '.join(benchmarks)}", file=sys.stderr)
        return 2
    for name in names:
        figures = benchmarks[name]()
        path = report.write(name, figures)
        print(f"\n{name}  (kept in {path})")
        for key, value in figures.items():
            if isinstance(value, dict):
                print(f"  {key}:")
                for point, figure in value.items():
                    print(f"    {point:>6}  {figure}")
            else:
                print(f"  {key}: {value}")
    if set(names) >= set(paired):
        print(f"\n{page.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
