"""A neuron that is missing is waited for before its models are loaded elsewhere; what is hot is used at once."""

import asyncio
from functools import partial
from typing import Any

from common.catalogue import Catalogue, Profile
from common.errors import Code
from common.messages import Job, Load, ModelState, ReplicaState, Submit
from cortex.fleet.fleet import BusFleet
from cortex.fleet.view import LinkState
from tests.component.test_link_fleet import drain, failed, failure, hurry, job, run, text, until
from tests.support.fake_neuron import FakeNeuron, ended, model_state, started, token

__all__ = ["hurry"]  # an autouse fixture

CATALOGUE = Catalogue(models=[Profile(id="big", source="file:/big.gguf", vram_mb=100)])
OTHER = model_state("other")


def loaded(**changes: Any) -> ModelState:
    return model_state("big", replicas=[ReplicaState(device="dev-0", status="loaded", memory_mb=100)], **changes)


def loads(neuron: FakeNeuron) -> int:
    return sum(isinstance(m, Load) for m in neuron.received)


async def fall_silent(fleet: BusFleet, neuron: FakeNeuron) -> None:
    """Have the gateway take the neuron for missing."""
    neuron.mute = True
    node = next(n for n in fleet.view() if n.name == neuron.name)
    await until(lambda: node.link is not LinkState.UP)


def test_a_new_request_waits_for_the_missing_neuron_and_loads_nothing_elsewhere() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleet: BusFleet) -> None:
            await fall_silent(fleet, a)
            call = fleet.submit([job("big")])
            await asyncio.sleep(0.3)
            a.mute = False
            assert text(await drain(call)) == "Hello wide world"
            assert loads(b) == 0
            assert call.record.node == "a"

        run(test, a, b, catalogue=CATALOGUE)


def test_once_the_grace_is_over_the_model_is_loaded_elsewhere() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleet: BusFleet) -> None:
            await fall_silent(fleet, a)
            call = fleet.submit([job("big"), job("big")])
            assert loads(b) == 0
            assert text(await drain(call, 2)) == "Hello wide world"
            assert loads(b) == 1
            assert call.record.node == "b"

        run(test, a, b, catalogue=CATALOGUE, node_grace_s=0.8)


def test_a_replica_that_is_hot_elsewhere_is_used_at_once() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(loaded(), name="b") as b:

        async def test(fleet: BusFleet) -> None:
            await fall_silent(fleet, a)
            began = asyncio.get_running_loop().time()
            assert text(await drain(fleet.submit([job("big")]))) == "Hello wide world"
            assert asyncio.get_running_loop().time() - began < 0.5
            assert sum(isinstance(m, Submit) for m in b.received) == 1

        run(test, a, b, catalogue=CATALOGUE)


def test_a_neuron_that_left_by_its_own_will_is_not_waited_for() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(OTHER, name="b") as b:

        async def test(fleet: BusFleet) -> None:
            node = next(n for n in fleet.view() if n.name == "a")
            a.send(a.state(state="draining", seq=2))
            await until(lambda: node.is_draining)
            await fall_silent(fleet, a)
            assert text(await drain(fleet.submit([job("big")]))) == "Hello wide world"
            assert loads(b) == 1

        run(test, a, b, catalogue=CATALOGUE)


def test_where_nobody_else_could_load_it_the_refusal_comes_at_once() -> None:
    with FakeNeuron(loaded(), name="a") as a:

        async def test(fleet: BusFleet) -> None:
            await fall_silent(fleet, a)
            began = asyncio.get_running_loop().time()
            try:
                error = await failure(fleet.submit([job("big")]))
            except Exception as refused:
                error = refused  # type: ignore[assignment]
            assert error.code is Code.NO_HEALTHY_NEURON
            assert asyncio.get_running_loop().time() - began < 0.5

        run(test, a, catalogue=CATALOGUE)


def test_faults_are_counted_by_what_came_of_them() -> None:
    with FakeNeuron(loaded(), name="a") as a:

        def play(gateway: str, given: Any) -> None:
            if given.attempt < 2:
                a._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))
            else:
                a.run(gateway, given)

        a.on_job = play

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job("big")])
            await drain(call)
            assert (call.record.recoveries, call.record.resumed) == (2, 2)
            a.on_job = lambda gateway, given: a._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))
            lost = fleet.submit([job("big")])
            assert (await failure(lost)).code is Code.WORKER_DIED
            assert (lost.record.recoveries, lost.record.resumed) == (7, 0)

        run(test, a, catalogue=CATALOGUE)


def test_streams_of_a_suspect_neuron_go_on_where_their_model_is_hot() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(loaded(), name="b") as b:
        for neuron in (a, b):
            neuron.on_job = partial(begin_or_go_on, neuron)

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job("big")])
            await until(lambda: call.tokens == 1)
            first = a if call.record.node == "a" else b
            began = asyncio.get_running_loop().time()
            first.mute = True
            assert text(await drain(call)) == "Hello wide world"
            assert asyncio.get_running_loop().time() - began < 0.5, "at suspicion, not when it is given up"
            assert call.record.node != first.name
            first.mute = False

        run(test, a, b, catalogue=CATALOGUE)


def test_streams_of_a_suspect_neuron_whose_model_is_nowhere_else_are_left_alone() -> None:
    with FakeNeuron(loaded(), name="a") as a, FakeNeuron(OTHER, name="b") as b:
        a.on_job = partial(begin_or_go_on, a)

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job("big")])
            await until(lambda: call.tokens == 1)
            await fall_silent(fleet, a)
            [given] = a.jobs()
            a.send(token(given, 1, " you"))
            a.send(ended(given, 2))
            a.mute = False
            assert text(await drain(call)) == "Hello you"
            assert call.record.recoveries == 0

        run(test, a, b, catalogue=CATALOGUE)


def begin_or_go_on(neuron: FakeNeuron, gateway: str, given: Job) -> None:
    """Say one word and no more; go on with what another has begun."""
    if given.attempt == 0:
        neuron._send(gateway, started(given))
        neuron._send(gateway, token(given, 0, "Hello"))
    else:
        neuron.run(gateway, given)
