"""Where a model that nobody has is loaded: several gateway processes against neurons that do what the test says."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from common.catalogue import Catalogue, Profile
from common.errors import Code
from common.messages import Claim, Job, Load, ModelState, ReplicaState, Submit
from cortex.fleet import claims as claims_module
from cortex.fleet.claims import registrars
from cortex.fleet.fleet import BusFleet
from tests.component.test_link_fleet import PATIENCE_S, drain, failed, failure, hurry, job, opened, text, until
from tests.support.fake_neuron import FakeNeuron, model_state

__all__ = ["hurry"]  # an autouse fixture

CATALOGUE = Catalogue(models=[Profile(id="cold", source="file:/cold.gguf", vram_mb=100)])
OTHER = model_state("other")


def run(
    test: Callable[[list[BusFleet]], Awaitable[None]],
    *neurons: FakeNeuron,
    gateways: int = 1,
    catalogue: Catalogue = CATALOGUE,
) -> None:
    """Run a test on so many gateway processes in front of these neurons."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            endpoints = {n.name: n.endpoint for n in neurons}
            fleets = [await stack.enter_async_context(opened(endpoints, catalogue)) for _ in range(gateways)]
            await asyncio.wait_for(test(fleets), PATIENCE_S * 2)

    asyncio.run(main())


def loads(neuron: FakeNeuron) -> list[Load]:
    return [m for m in neuron.received if isinstance(m, Load)]


def submits(neuron: FakeNeuron) -> int:
    return sum(isinstance(m, Submit) for m in neuron.received)


def loaded(model: str, **changes: Any) -> ModelState:
    replica = ReplicaState(device="dev-0", status="loaded", memory_mb=100)
    return model_state(model, replicas=[replica], **changes)


def test_gateways_that_disagree_load_on_the_neuron_that_was_claimed_first() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b, FakeNeuron(OTHER, name="c") as c:

        async def test(fleets: list[BusFleet]) -> None:
            for fleet, name in zip(fleets, "abca", strict=True):
                # Each believes another neuron to have most memory free.
                for node in fleet.view():
                    node.note_load("x", 0 if node.name == name else 500)
            calls = [fleet.submit([job("cold")]) for fleet in fleets for _ in range(5)]
            for call in calls:
                assert text(await drain(call)) == "Hello wide world"
            used = [n for n in (a, b, c) if loads(n) or submits(n)]
            assert len(used) == 1
            assert submits(used[0]) == 20
            assert len(loads(used[0])) == len(fleets)

        run(test, a, b, c, gateways=4)


def test_requests_of_one_process_for_one_model_share_a_claim() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleets: list[BusFleet]) -> None:
            for call in [fleets[0].submit([job("cold")]) for _ in range(8)]:
                await drain(call)
            assert sum(isinstance(m, Claim) for n in (a, b) for m in n.received) == 1

        run(test, a, b)


def refusing_first(neuron: FakeNeuron, first: list[str], code: Code = Code.NO_CAPACITY) -> None:
    """Have the neuron that is asked first refuse jobs, and any other run them."""

    def play(gateway: str, given: Job) -> None:
        if not first:
            first.append(neuron.name)
        if first == [neuron.name]:
            neuron._send(gateway, failed(given, code, retriable=True, retry_after_ms=7000))
        else:
            neuron.run(gateway, given)

    neuron.on_job = play


def test_a_neuron_that_cannot_take_it_is_passed_over_by_everybody() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b, FakeNeuron(OTHER, name="c") as c:
        first: list[str] = []
        for neuron in (a, b, c):
            refusing_first(neuron, first)

        async def test(fleets: list[BusFleet]) -> None:
            for call in [fleet.submit([job("cold")]) for fleet in fleets]:
                assert text(await drain(call)) == "Hello wide world"
            assert sum(bool(submits(n)) for n in (a, b, c)) == 2

        run(test, a, b, c, gateways=3)


def test_a_busy_replica_brings_about_no_second_one() -> None:
    with FakeNeuron(loaded("cold"), name="a") as a, FakeNeuron(OTHER, name="b") as b:
        refusing_first(a, [], Code.BUSY)

        async def test(fleets: list[BusFleet]) -> None:
            error = await failure(fleets[0].submit([job("cold")]))
            assert (error.code, error.retry_after_s) == (Code.NO_CAPACITY, 7.0)
            assert not loads(b)
            assert not submits(b)

        run(test, a, b)


def test_a_registrar_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "ANSWER_S", 0.1)
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b:
        deaf = {"a": a, "b": b}[registrars(["a", "b"], "cold")[0]]
        deaf.answers_claims = False

        async def test(fleets: list[BusFleet]) -> None:
            for call in [fleet.submit([job("cold")]) for fleet in fleets]:
                assert text(await drain(call)) == "Hello wide world"
            assert sum(bool(submits(n)) for n in (a, b)) == 1

        run(test, a, b, gateways=2)


def test_a_job_whose_client_goes_while_the_claim_is_open_is_sent_nowhere() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleets: list[BusFleet]) -> None:
            gone = fleets[0].submit([job("cold")])
            gone.close()
            assert len(fleets[0].jobs) == 0
            await drain(fleets[0].submit([job("other")]))  # its answer comes after that of the claim
            await until(lambda: any(isinstance(m, Claim) for n in (a, b) for m in n.received))
            assert not any(loads(n) for n in (a, b))

        run(test, a, b)


def test_a_profile_that_wants_replicas_gets_another_where_nothing_has_to_give_way() -> None:
    catalogue = Catalogue(models=[Profile(id="cold", source="file:/cold.gguf", vram_mb=100, replicas=2)])
    with FakeNeuron(loaded("cold"), name="a") as a, FakeNeuron(OTHER, name="b") as b, FakeNeuron(OTHER, name="c") as c:

        async def test(fleets: list[BusFleet]) -> None:
            for call in [fleet.submit([job("cold")]) for fleet in fleets for _ in range(4)]:
                await drain(call)
            await until(lambda: bool(loads(b) or loads(c)))
            assert sum(bool(loads(n)) for n in (a, b, c)) == 1
            assert submits(a) == 8

        run(test, a, b, c, gateways=2, catalogue=catalogue)


def test_a_waiting_request_is_told_why() -> None:
    loading = ReplicaState(device="dev-0", status="loading", progress=0.4)
    states = [
        model_state("cold", status="loading", replicas=[loading]),
        loaded("other", queued=3),
        model_state("third", status="unloaded", replicas=[], queued=1, waits_for_room=True),
    ]
    with FakeNeuron(*states) as neuron:
        neuron.on_job = neuron.ignore

        async def test(fleets: list[BusFleet]) -> None:
            assert fleets[0].submit([job("cold")]).waits_for() == "loading 40%"
            assert fleets[0].submit([job("other")]).waits_for() == "queue 3"
            assert fleets[0].submit([job("third")]).waits_for() == "waiting for room"

        run(test, neuron)


def test_a_job_that_only_asks_for_its_prompt_loads_nothing_and_brings_the_profile() -> None:
    with FakeNeuron(OTHER, name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleets: list[BusFleet]) -> None:
            await drain(fleets[0].submit([job("cold", answer="prompt")]))
            (submit,) = [m for n in (a, b) for m in n.received if isinstance(m, Submit)]
            assert submit.profile == CATALOGUE.profile("cold")
            assert not any(loads(n) for n in (a, b))

        run(test, a, b)
