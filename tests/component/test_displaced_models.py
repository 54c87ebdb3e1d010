"""A model whose device is in quarantine is loaded at another neuron, without a request and at nobody's expense."""

import asyncio
from typing import Any

from common.catalogue import Catalogue, Profile
from common.messages import Load, ModelState
from cortex.fleet.fleet import BusFleet
from tests.component.test_link_fleet import hurry, received, run, until
from tests.support.fake_neuron import FakeNeuron, model_state

__all__ = ["hurry"]  # an autouse fixture

CATALOGUE = Catalogue(models=[Profile(id="big", source="file:/big.gguf", vram_mb=100)])
OTHER = model_state("other")


def gone(model: str = "big", **changes: Any) -> ModelState:
    """Return a model that has lost its device."""
    return model_state(model, **{"status": "unloaded", "replicas": [], "displaced": True, **changes})


def loads(neuron: FakeNeuron) -> list[str]:
    return [m.model for m in neuron.received if isinstance(m, Load)]


def test_it_is_loaded_where_it_fits_and_nobody_has_to_go() -> None:
    with FakeNeuron(gone(), name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleet: BusFleet) -> None:
            load: Load = await received(b, Load)
            assert (load.model, load.may_evict) == ("big", False)
            assert load.profile is not None
            b.send(b.state(seq=2, models=[OTHER, model_state("big")]))
            await until(lambda: fleet.jobs.placer.is_loaded("big"))
            assert loads(b) == ["big"]

        run(test, a, b, catalogue=CATALOGUE)


def test_what_another_neuron_has_already_is_left_alone() -> None:
    with FakeNeuron(gone(), name="a") as a, FakeNeuron(model_state("big"), name="b") as b, FakeNeuron(OTHER) as c:

        async def test(fleet: BusFleet) -> None:
            await until(lambda: all(n.is_known for n in fleet.view()))
            await asyncio.sleep(0.3)
            assert loads(b) == loads(c) == []

        run(test, a, b, c, catalogue=CATALOGUE)


def test_without_room_it_waits_until_there_is_some(monkeypatch: Any) -> None:
    monkeypatch.setattr("cortex.fleet.placer.REHOUSE_S", 0.05)
    full = gone(memory_mb=5000)
    with FakeNeuron(full, name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleet: BusFleet) -> None:
            await until(lambda: all(n.is_known for n in fleet.view()))
            await asyncio.sleep(0.3)
            assert loads(b) == []
            a.send(a.state(seq=2, models=[gone()]))
            await received(b, Load)

        run(test, a, b, catalogue=Catalogue(models=[Profile(id="big", source="file:/big.gguf")]))


def test_pinned_ones_come_first_then_by_class() -> None:
    rows = [gone("low", residency_priority=1), gone("high", residency_priority=200), gone("pin", pinned=True)]
    with FakeNeuron(*rows, name="a") as a, FakeNeuron(OTHER, *(model_state(r.id, status="unloaded", replicas=[])
                                                             for r in rows), name="b") as b:  # fmt: skip

        async def test(fleet: BusFleet) -> None:
            await received(b, Load, count=3)
            assert loads(b) == ["pin", "high", "low"]

        run(test, a, b)
