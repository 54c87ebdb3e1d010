"""What the gateway does about requests that end workers, against neurons that do what the test says."""

from functools import partial

import pytest

from common.errors import Code, RequestError
from common.messages import Failed, FailedItem, Job, Text
from common.poison import fingerprint
from cortex.fleet.fleet import BusFleet
from tests.component.test_link_fleet import drain, failure, job, run, text, until
from tests.support.fake_neuron import FakeNeuron


def test_what_a_neuron_holds_against_a_job_travels_with_its_next_attempt() -> None:
    with FakeNeuron(name="a") as neuron:

        def play(gateway: str, given: Job) -> None:
            if given.attempt == 2:
                neuron.run(gateway, given)
                return
            strikes, shared = (1, 0) if given.attempt == 0 else (0, 2)
            item = FailedItem(job=given.id, attempt=given.attempt, code=Code.WORKER_DIED, message="gone",
                              retriable=True, strikes=strikes, shared_deaths=shared)  # fmt: skip
            neuron._send(gateway, Failed(items=[item]))

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
            assert [(j.strikes, j.shared_deaths) for j in neuron.jobs(3)] == [(0, 0), (1, 0), (1, 2)]

        run(test, neuron)


def refuse(neuron: FakeNeuron, gateway: str, given: Job) -> None:
    item = FailedItem(job=given.id, attempt=given.attempt, code=Code.POISONED_REQUEST, message="it kills")
    neuron._send(gateway, Failed(items=[item]))


def test_a_poisoned_request_is_tried_nowhere_else() -> None:
    with FakeNeuron(name="a") as first, FakeNeuron(name="b") as second:
        for neuron in (first, second):
            neuron.on_job = partial(refuse, neuron)

        async def test(fleet: BusFleet) -> None:
            assert (await failure(fleet.submit([job()]))).code is Code.POISONED_REQUEST
            assert len(first.jobs_from) + len(second.jobs_from) == 1

        run(test, first, second)


def test_what_one_neuron_has_convicted_is_sent_to_none() -> None:
    with FakeNeuron(name="a") as first, FakeNeuron(name="b") as second:
        bad = job(input=Text(text="bad"))
        second.poisoned = [fingerprint(bad)]

        async def test(fleet: BusFleet) -> None:
            await until(lambda: all(n.is_known for n in fleet.view()))
            with pytest.raises(RequestError) as caught:
                fleet.submit([job(input=Text(text="bad"))])
            assert caught.value.code is Code.POISONED_REQUEST
            assert text(await drain(fleet.submit([job(input=Text(text="good"))]))) == "Hello wide world"
            assert len(fleet.jobs) == 0

        run(test, first, second)
