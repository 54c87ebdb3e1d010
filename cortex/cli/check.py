"""`cortex check-config`: whether the files are usable, and what the fleet that answers would do with them."""

import asyncio
from pathlib import Path

from common import tables
from common.errors import RequestError
from cortex.configuration import Configuration
from cortex.fleet import placement, routing
from cortex.fleet.fleet import BusFleet
from cortex.fleet.listing import resolve
from cortex.fleet.view import LinkState, Node

DONE, FAILED = 0, 1


def check(config_file: Path, explained: str | None) -> int:
    """Print what the files say and where each model would go; return the exit status. Raises ConfigError."""
    configuration = Configuration(config_file)
    models_file = configuration.models_file
    print(f"{config_file}: valid, {len(configuration.settings.neurons)} neurons")
    print(f"{models_file}: valid, {len(configuration.catalogue.models)} models" if models_file else "no models file")
    nodes = asyncio.run(_look(configuration))
    for node in nodes:
        if node.link is not LinkState.UP:
            print(f"neuron {node.name} at {node.endpoint}: {node.error or 'does not answer'}")
    if explained is not None:
        return _explain(explained, configuration, nodes)
    _show_places(configuration, nodes)
    return DONE


async def _look(configuration: Configuration) -> list[Node]:
    """Connect as a gateway does, and return the neurons with what they told."""
    fleet = BusFleet(
        configuration.settings,
        configuration.catalogue,
        created=configuration.created,
        keys=configuration.known_neurons.keys,
    )
    try:
        await fleet.open()
        return fleet.view()
    finally:
        await fleet.close()


def _show_places(configuration: Configuration, nodes: list[Node]) -> None:
    rows = []
    for profile in configuration.catalogue.models:
        holding = [c.node for c in routing.rank(nodes, profile.id)]
        places = placement.rank(nodes, profile.id, profile)
        if holding:
            rows.append([profile.id, ", ".join(holding), "is there already"])
        elif places:
            rows.append([profile.id, places[0].node, "; ".join(places[0].reasons)])
        else:
            rows.append([profile.id, "nowhere", "no neuron answers that takes work"])
    if rows:
        tables.show(["MODEL", "WOULD GO TO", "BECAUSE"], rows)
    sizes = [
        [m.id, f"{n.name}/{f.device}", str(f.context), _mb(f.kv_mb), str(f.kv_tokens // f.context), _mb(f.memory_mb)]
        for n in nodes
        for m in n.models.values()
        for f in m.forecasts
    ]
    if sizes:
        columns = ("MODEL", "ALONE ON", "CONTEXT", "KV", "FULL CONTEXTS", "MEMORY")
        tables.show(columns, sizes, right=columns[2:])


def _explain(name: str, configuration: Configuration, nodes: list[Node]) -> int:
    try:
        model, _ = resolve(name, nodes, configuration.catalogue)
    except RequestError as error:
        print(error.message)
        return FAILED
    profile = configuration.catalogue.profile(model)
    print(f"\n{model}" if model == name else f"\n{name} is an alias of {model}")
    loaded = routing.rank(nodes, model)
    if loaded:
        print("requests go to the neurons that have it, the first that takes them:")
        rows = [
            [str(n), c.node, "loaded" if c.is_loaded else "coming", f"{c.crowding:.2f}", f"{c.wait_s:.1f} s"]
            for n, c in enumerate(loaded, 1)
        ]
        tables.show(["", "NEURON", "STATE", "JOBS/SLOT", "WAIT"], rows, right=("JOBS/SLOT", "WAIT"))
    print("it would be loaded, where nobody had it, on the first of these that can:")
    rows = [
        [str(n), p.node, _mb(p.need_mb), _mb(p.free_mb), "; ".join(p.reasons)]
        for n, p in enumerate(placement.rank(nodes, model, profile), 1)
    ]
    tables.show(["", "NEURON", "NEEDS", "FREE", "BECAUSE"], rows, right=("NEEDS", "FREE"))
    return DONE


def _mb(value: int | None) -> str:
    return "unknown" if value is None else f"{value} MiB"
