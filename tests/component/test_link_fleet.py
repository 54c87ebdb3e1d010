"""Links and job client against a neuron that does what the test says."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from common.catalogue import Catalogue, Defaults, Profile
from common.errors import Code, RequestError
from common.ids import new_job_id
from common.messages import (
    Abort,
    Beat,
    Chat,
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    Hello,
    HelloWanted,
    Job,
    JobKey,
    Load,
    Offer,
    Refused,
    RenderedItem,
    Started,
    Submit,
    Text,
)
from cortex.fleet import fleet as fleet_module
from cortex.fleet import link as link_module
from cortex.fleet import recovery as recovery_module
from cortex.fleet.calls import JobCall
from cortex.fleet.contract import Event
from cortex.fleet.fleet import BusFleet
from cortex.settings import CortexSettings, EvictionSettings, GatewaySettings, NeuronEntry
from tests.support.fake_neuron import MODEL, FakeNeuron, ended, model_state, node_state, started, token
from tests.support.harness import free_port

PATIENCE_S = 5.0
Test = Callable[[BusFleet], Awaitable[None]]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything that waits ten times as fast."""
    for name in ("BEAT_S", "HELLO_S", "REFUSED_S", "QUIET_S", "SUSPECT_S", "LOST_S"):
        monkeypatch.setattr(link_module, name, getattr(link_module, name) / 10)
    monkeypatch.setattr(fleet_module, "TICK_S", 0.02)
    monkeypatch.setattr(fleet_module, "SETTLE_S", 0.3)
    monkeypatch.setattr(recovery_module, "BACKOFF_S", 0.02)


@contextlib.asynccontextmanager
async def opened(endpoints: dict[str, str], catalogue: Catalogue, **gateway: Any) -> AsyncIterator[BusFleet]:
    settings = CortexSettings(
        gateway=GatewaySettings(**gateway),
        eviction=EvictionSettings(strategy="priority", defrag_after_cycles=7),
        neurons=[NeuronEntry(name=n, endpoint=e) for n, e in endpoints.items()],
    )
    fleet = BusFleet(settings, catalogue, created=1)
    try:
        await fleet.open()
        yield fleet
    finally:
        await fleet.close()


def run(test: Test, *neurons: FakeNeuron, catalogue: Catalogue | None = None, **gateway: Any) -> None:
    """Run a test on a fleet of these neurons."""

    async def main() -> None:
        async with opened({n.name: n.endpoint for n in neurons}, catalogue or Catalogue(), **gateway) as fleet:
            await asyncio.wait_for(test(fleet), PATIENCE_S * 2)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def received(neuron: FakeNeuron, kind: type[Any], *, count: int = 1) -> Any:
    """Wait for a message without stopping the loop it depends on."""
    return await asyncio.to_thread(neuron.wait_for, kind, count=count)


def job(model: str = MODEL, **changes: Any) -> Job:
    """Return a fresh job."""
    values: dict[str, Any] = {"input": Text(text="hi"), "budget_ms": 60_000, **changes}
    return Job(id=new_job_id(), attempt=0, model=model, request_id="r", **values)


async def drain(call: JobCall, count: int = 1) -> list[tuple[int, Event]]:
    """Return all events until `count` jobs have ended."""
    events: list[tuple[int, Event]] = []
    while sum(isinstance(e, EndedItem | RenderedItem) for _, e in events) < count:
        events += await asyncio.wait_for(call.next(None), PATIENCE_S)
    return events


def text(events: list[tuple[int, Event]], index: int = 0) -> str:
    """Return the text of one job."""
    return "".join(e for i, e in events if i == index and isinstance(e, str))


async def failure(call: JobCall) -> RequestError:
    """Return the error a call ends with."""
    with pytest.raises(RequestError) as caught:
        await drain(call, count=99)
    return caught.value


def failed(given: Job, code: Code, *, retriable: bool = False, retry_after_ms: int | None = None) -> Failed:
    """Return the bad end of a job."""
    return Failed(
        items=[
            FailedItem(
                job=given.id,
                attempt=given.attempt,
                code=code,
                message=f"it is {code}",
                retriable=retriable,
                retry_after_ms=retry_after_ms,
            )
        ]
    )


def test_hello_introduces_the_gateway_and_beats_name_its_jobs() -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.hold

        async def test(fleet: BusFleet) -> None:
            hello = await received(neuron, Hello)
            assert (hello.role, hello.eviction.strategy, hello.eviction.defrag_after_cycles) == (
                "gateway",
                "priority",
                7,
            )
            assert fleet.nodes()[0]["link"] == "up"
            given = job()
            call = fleet.submit([given])
            await asyncio.to_thread(neuron.wait_for, Beat, lambda b: b.jobs == [JobKey(given.id, 0)])
            call.close()
            await asyncio.to_thread(neuron.wait_for, Beat, lambda b: b.jobs == [], count=2)

        run(test, neuron)


def test_a_job_is_answered_in_order() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job()])
            events = await drain(call)
            assert text(events) == "Hello wide world"
            assert (call.tokens, len(fleet.jobs)) == (3, 0)
            assert call.first_text_at is not None

        run(test, neuron)


def test_a_slow_reader_finds_all_that_came() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job(), job()])
            await until(lambda: len(fleet.jobs) == 0)
            events = await call.next(None)
            assert [i for i, _ in events] == [0] * 5 + [1] * 5, "start, three pieces, end of each"
            assert [text(events, i) for i in (0, 1)] == ["Hello wide world"] * 2

        run(test, neuron)


def test_all_jobs_of_a_request_travel_together() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            await drain(fleet.submit([job(), job(), job()]), count=3)
            submit = await received(neuron, Submit)
            assert len(submit.jobs) == 3

        run(test, neuron)


def test_repeated_tokens_are_dropped() -> None:
    with FakeNeuron() as neuron:

        def play(gateway: str, given: Job) -> None:
            for message in (
                started(given), token(given, 0, "a"), token(given, 0, "a"), token(given, 1, "b"), started(given),
                token(given, 0, "a"), token(given, 2, "c"), ended(given, 3),
            ):  # fmt: skip
                neuron._send(gateway, message)

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            events = await drain(fleet.submit([job()]))
            assert text(events) == "abc"
            assert len(events) == len([e for e in events if isinstance(e[1], str)]) + 2

        run(test, neuron)


@pytest.mark.parametrize("case", ["a token is missing", "the last token is missing"])
def test_a_gap_is_never_papered_over(case: str) -> None:
    with FakeNeuron() as neuron:

        def play(gateway: str, given: Job) -> None:
            neuron._send(gateway, started(given))
            neuron._send(gateway, token(given, 0, "a"))
            neuron._send(gateway, token(given, 2, "c") if case == "a token is missing" else ended(given, 2))

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            given = job()
            call = fleet.submit([given])
            assert (await failure(call)).code is Code.TOKENS_LOST
            assert call.tokens == 1
            assert (await received(neuron, Abort)).jobs == [JobKey(given.id, 0)]

        run(test, neuron)


def test_a_lost_start_is_a_fault_that_the_client_never_sees() -> None:
    with FakeNeuron() as neuron:

        def play(gateway: str, given: Job) -> None:
            if given.attempt == 0:
                neuron._send(gateway, token(given, 0, "old"))
            else:
                neuron.run(gateway, given)

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"

        run(test, neuron)


def test_an_older_attempt_is_dropped_and_aborted_at_its_sender() -> None:
    with FakeNeuron() as neuron:

        def play(gateway: str, given: Job) -> None:
            if given.attempt == 0:
                neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))
                return
            old = JobKey(given.id, 0)
            for message in (started(given), token(old, 0, "old"), token(given, 0, "new"), ended(given, 1)):
                neuron._send(gateway, message)

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            given = job()
            assert text(await drain(fleet.submit([given]))) == "new"
            assert (await received(neuron, Abort)).jobs == [JobKey(given.id, 0)]

        run(test, neuron)


def test_a_failure_before_the_start_is_tried_again_with_a_new_attempt_and_less_time() -> None:
    with FakeNeuron() as neuron:

        def play(gateway: str, given: Job) -> None:
            if given.attempt < 2:
                neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))
            else:
                neuron.run(gateway, given)

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
            sent = neuron.jobs(3)
            assert [j.attempt for j in sent] == [0, 1, 2]
            budgets = [j.budget_ms for j in sent]
            assert budgets == sorted(budgets, key=lambda ms: ms or 0, reverse=True)
            assert budgets[2] != budgets[0]

        run(test, neuron)


def test_attempts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "FAULTS", 3)
    with FakeNeuron() as neuron:
        neuron.on_job = lambda gateway, given: neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))

        async def test(fleet: BusFleet) -> None:
            assert (await failure(fleet.submit([job()]))).code is Code.WORKER_DIED
            assert [j.attempt for j in neuron.jobs(3)] == [0, 1, 2]
            assert len(fleet.jobs) == 0

        run(test, neuron)


def test_what_can_never_succeed_is_not_tried_again() -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = lambda gateway, given: neuron._send(gateway, failed(given, Code.CONTEXT_LENGTH_EXCEEDED))

        async def test(fleet: BusFleet) -> None:
            assert (await failure(fleet.submit([job()]))).code is Code.CONTEXT_LENGTH_EXCEEDED
            assert len(neuron.jobs()) == 1

        run(test, neuron)


def test_a_job_that_has_begun_goes_on_with_what_was_delivered_and_the_client_sees_one_answer() -> None:
    with FakeNeuron() as neuron:

        def die_after_a_word(gateway: str, given: Job) -> None:
            neuron._send(gateway, started(given, cached_tokens=2))
            neuron._send(gateway, token(given, 0, "Hello"))
            neuron._send(gateway, token(given, 1, "", count=0))
            neuron.on_job = neuron.run
            neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))

        neuron.on_job = die_after_a_word

        async def test(fleet: BusFleet) -> None:
            given = job()
            events = await drain(fleet.submit([given]))
            assert text(events) == "Hello wide world"
            assert [type(e).__name__ for _, e in events if not isinstance(e, str)] == ["StartedItem", "EndedItem"]
            end = next(e for _, e in events if isinstance(e, EndedItem))
            assert (end.total, end.cached_tokens) == (3, 2)
            again = neuron.jobs(2)[1]
            assert (again.attempt, again.resume_tokens, again.resume_text) == (1, [0], "Hello")
            assert len(fleet.jobs) == 0

        run(test, neuron)


def test_text_that_only_the_end_makes_final_is_not_said_twice() -> None:
    with FakeNeuron() as neuron:

        def die_before_the_end(gateway: str, given: Job) -> None:
            neuron._send(gateway, started(given))
            if not given.resume_tokens:
                neuron._send(gateway, token(given, 0, "Hello"))
            neuron._send(gateway, token(given, 1, " held back", count=0))
            if given.resume_tokens:
                neuron._send(gateway, ended(given, 1))
            else:
                neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))

        neuron.on_job = die_before_the_end

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello held back"

        run(test, neuron)


def test_a_job_goes_on_at_another_replica_after_a_fault_at_the_first() -> None:
    with FakeNeuron(name="a") as a, FakeNeuron(name="b") as b:

        def die(neuron: FakeNeuron, gateway: str, given: Job) -> None:
            neuron._send(gateway, started(given))
            neuron._send(gateway, token(given, 0, "Hello"))
            neuron._send(gateway, failed(given, Code.WORKER_DIED, retriable=True))
            a.on_job, b.on_job = a.run, b.run

        a.on_job, b.on_job = partial(die, a), partial(die, b)

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
            assert (len(a.jobs()), len(b.jobs())) == (1, 1)

        run(test, a, b)


def test_after_the_last_attempt_a_failure_is_the_clients_and_ends_the_other_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery_module, "FAULTS", 1)
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.hold

        async def test(fleet: BusFleet) -> None:
            first, second = job(), job()
            call = fleet.submit([first, second])
            await call.next(None)
            neuron.send(failed(first, Code.WORKER_DIED, retriable=True))
            assert (await failure(call)).code is Code.WORKER_DIED
            assert (await received(neuron, Abort)).jobs == [JobKey(second.id, 0)]
            assert len(fleet.jobs) == 0

        run(test, neuron)


def test_closing_a_call_aborts_it_at_once() -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.ignore

        async def test(fleet: BusFleet) -> None:
            given = job()
            call = fleet.submit([given])
            await received(neuron, Submit)
            began = asyncio.get_running_loop().time()
            call.close()
            assert (await received(neuron, Abort)).jobs == [JobKey(given.id, 0)]
            assert asyncio.get_running_loop().time() - began < 0.1
            call.close()

        run(test, neuron)


def test_a_busy_neuron_is_passed_over() -> None:
    with FakeNeuron(name="a") as a, FakeNeuron(name="b") as b:
        for neuron in (a, b):
            neuron.on_job = lambda gateway, given, n=neuron: (  # type: ignore[misc]
                n._send(gateway, failed(given, Code.BUSY, retriable=True, retry_after_ms=3000))
                if given.attempt == 0
                else n.run(gateway, given)
            )

        async def test(fleet: BusFleet) -> None:
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
            assert len([m for n in (a, b) for m in n.received if isinstance(m, Submit)]) == 2

        run(test, a, b)


def test_when_all_are_busy_the_shortest_wait_is_told() -> None:
    with FakeNeuron(name="a") as a, FakeNeuron(name="b") as b:
        for neuron, wait_ms in ((a, 9000), (b, 4000)):
            neuron.on_job = lambda gateway, given, n=neuron, ms=wait_ms: n._send(  # type: ignore[misc]
                gateway, failed(given, Code.BUSY, retriable=True, retry_after_ms=ms)
            )

        async def test(fleet: BusFleet) -> None:
            error = await failure(fleet.submit([job()]))
            assert (error.code, error.retry_after_s) == (Code.NO_CAPACITY, 4.0)

        run(test, a, b)


def test_a_model_is_asked_for_with_its_profile_before_its_first_job() -> None:
    profile = Profile(id="cold", source="file:/x.gguf", context=100)
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            await drain(fleet.submit([job("cold")]))
            order = [m for m in neuron.received if isinstance(m, Load | Submit)]
            assert isinstance(order[0], Load)
            assert (order[0].model, order[0].profile) == ("cold", profile)
            assert isinstance(order[1], Submit)

        run(test, neuron, catalogue=Catalogue(models=[profile]))


def test_a_refused_load_ends_as_the_failure_of_its_job() -> None:
    with FakeNeuron(model_state("cold", status="unloaded", replicas=[])) as neuron:

        def play(gateway: str, given: Job) -> None:
            load = next(m for m in neuron.received if isinstance(m, Load))
            neuron._send(gateway, Refused(request=load.request, code=Code.MODEL_LOADING_FAILED, message="no file"))
            neuron._send(gateway, failed(given, Code.MODEL_LOADING_FAILED))

        neuron.on_job = play

        async def test(fleet: BusFleet) -> None:
            assert (await failure(fleet.submit([job("cold")]))).code is Code.MODEL_LOADING_FAILED

        run(test, neuron)


def test_names_are_resolved_through_both_catalogues() -> None:
    catalogue = Catalogue(models=[Profile(id="cold", source="x")], aliases={"mine": "cold"})
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            neuron.send(neuron.state(aliases={"theirs": MODEL}))
            await until(lambda: "aliases" in fleet.nodes()[0]["state"])
            assert [fleet.resolve(n)[0] for n in ("cold", "mine", "theirs", MODEL)] == ["cold", "cold", MODEL, MODEL]
            with pytest.raises(RequestError) as caught:
                fleet.resolve("nope")
            assert caught.value.code is Code.MODEL_NOT_FOUND
            assert [m["id"] for m in fleet.models()] == ["cold", "mine", MODEL, "theirs"]

        run(test, neuron, catalogue=catalogue)


def test_a_neuron_that_forgot_this_gateway_hears_hello_again() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            neuron.send(HelloWanted())
            await received(neuron, Hello, count=2)

        run(test, neuron)


def test_a_missed_state_makes_the_gateway_ask_for_a_full_one() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            neuron.send(node_state(model_state("late"), seq=5, full=False, incarnation=neuron.incarnation))
            await received(neuron, Hello, count=2)
            assert [m["id"] for m in fleet.models()] == [MODEL]

        run(test, neuron)


@pytest.mark.parametrize("begun", [False, True])
def test_jobs_of_an_earlier_life_go_on_in_the_next_one(begun: bool) -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.hold if begun else neuron.ignore

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job()])
            if begun:
                await call.next(None)
            else:
                await received(neuron, Submit)
            neuron.on_job = neuron.run
            neuron.incarnation = new_job_id()
            neuron.send(neuron.state())
            assert text(await drain(call)) == "Hello wide world"

        run(test, neuron)


def test_a_silent_neuron_is_suspect_then_lost_and_back_when_it_speaks() -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.hold

        async def test(fleet: BusFleet) -> None:
            call = fleet.submit([job()])
            await call.next(None)
            neuron.mute = True
            await until(lambda: fleet.nodes()[0]["link"] == "suspect")
            assert len(fleet.jobs) == 1, "what runs there is left alone"
            with pytest.raises(RequestError) as caught:
                fleet.submit([job()])
            assert caught.value.code is Code.NO_HEALTHY_NEURON
            await until(lambda: fleet.nodes()[0]["link"] == "down")
            assert fleet.health().status == "degraded"
            neuron.mute = False
            await until(lambda: fleet.nodes()[0]["link"] == "up")
            neuron.on_job = neuron.run
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
            assert text(await drain(call)) == "Hello wide world", "what ran there goes on"

        run(test, neuron)


def test_a_quiet_neuron_that_answers_stays_up() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            seen = set()
            for _ in range(60):
                seen.add(fleet.nodes()[0]["link"])
                await asyncio.sleep(0.01)
            assert seen == {"up"}

        run(test, neuron)


def test_garbage_is_counted_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            for frames in ((b"\xc1",), (b"",), (b"a", b"b"), (b"\x81\xa4kind\xa4what",)):
                neuron.send_raw(*frames)
            link = fleet._links["beast"]
            await until(lambda: link.undecodable == 4)
            assert text(await drain(fleet.submit([job()]))) == "Hello wide world"

        with caplog.at_level(logging.WARNING):
            run(test, neuron)
        assert len([r for r in caplog.records if "undecodable" in r.getMessage()]) == 1


def test_a_neuron_of_another_version_is_shown_by_name_and_left_alone() -> None:
    with FakeNeuron(greets=False) as neuron:

        async def test(fleet: BusFleet) -> None:
            await received(neuron, Hello)
            neuron.send(Refused(code=Code.INVALID_VALUE, message="speaks protocol 9.0"))
            await until(lambda: fleet.nodes()[0]["link"] == "refused")
            assert fleet.nodes()[0]["error"] == "speaks protocol 9.0"
            assert "beast" in fleet.health().reasons[0]
            assert "9.0" in fleet.health().reasons[0]
            assert not [m for m in neuron.received if isinstance(m, Beat)]
            neuron.greets = True
            await until(lambda: fleet.nodes()[0]["link"] == "up")
            assert fleet.nodes()[0]["error"] is None

        run(test, neuron)


def test_a_neuron_that_comes_late_is_waited_for_and_picked_up(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()

    async def main() -> None:
        async with opened({"beast": f"127.0.0.1:{port}"}, Catalogue()) as fleet:
            assert fleet.nodes()[0]["link"] == "down"
            with pytest.raises(RequestError) as caught:
                fleet.resolve(MODEL)
            assert caught.value.code is Code.NO_HEALTHY_NEURON
            neuron = FakeNeuron(port=port)
            await asyncio.to_thread(neuron.__enter__)
            try:
                await until(lambda: fleet.nodes()[0]["link"] == "up")
                assert fleet.resolve(MODEL)[0] == MODEL
            finally:
                await asyncio.to_thread(neuron.__exit__)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    said = [r.getMessage() for r in caplog.records]
    assert said.count(f"neuron beast at 127.0.0.1:{port} does not answer; waiting for it") == 1
    assert said.count(f"neuron beast at 127.0.0.1:{port} answers") == 1


def test_a_neuron_that_is_restarted_on_its_port_is_picked_up_again() -> None:
    port = free_port()

    async def main() -> None:
        async with opened({"beast": f"127.0.0.1:{port}"}, Catalogue()) as fleet:
            for _ in range(2):
                neuron = FakeNeuron(port=port)
                await asyncio.to_thread(neuron.__enter__)
                try:
                    await until(lambda n=neuron: bool(n.gateways) and fleet.nodes()[0]["link"] == "up")  # type: ignore[misc]
                    assert text(await drain(fleet.submit([job()]))) == "Hello wide world"
                finally:
                    await asyncio.to_thread(neuron.__exit__)

    asyncio.run(main())


def test_another_name_is_mentioned_and_the_configured_one_used(caplog: pytest.LogCaptureFixture) -> None:
    with FakeNeuron() as neuron:
        endpoint, neuron.name = neuron.endpoint, "benjy"

        async def main() -> None:
            async with opened({"beast": endpoint}, Catalogue()) as fleet:
                assert [n["name"] for n in fleet.nodes()] == ["beast"]

        asyncio.run(main())
    assert [r.getMessage() for r in caplog.records if "benjy" in r.getMessage()] == [
        "neuron beast calls itself benjy; the configured name is used"
    ]


def test_numbers_that_no_bus_carries_are_the_clients_error() -> None:
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            huge = Chat(messages=[{"role": "user", "content": "x", "n": 10**30}])
            with pytest.raises(RequestError) as caught:
                fleet.submit([job(input=huge)])
            assert caught.value.code is Code.INVALID_VALUE
            assert len(fleet.jobs) == 0

        run(test, neuron)


def test_a_job_that_never_begins_is_given_up_after_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.fleet.jobs.OVERDUE_S", 0.05)
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.ignore

        async def test(fleet: BusFleet) -> None:
            given = job(budget_ms=50)
            assert (await failure(fleet.submit([given]))).code is Code.DEADLINE_EXCEEDED
            assert (await received(neuron, Abort)).jobs == [JobKey(given.id, 0)]

        run(test, neuron)


def test_a_stop_ends_every_call_with_its_reason() -> None:
    with FakeNeuron() as neuron:
        neuron.on_job = neuron.hold

        async def test(fleet: BusFleet) -> None:
            calls = [fleet.submit([job(), job()]), fleet.submit([job()])]
            fleet.jobs.fail_all(RequestError(Code.SHUTTING_DOWN, "stopping"))
            for call in calls:
                assert (await failure(call)).code is Code.SHUTTING_DOWN
            assert len(fleet.jobs) == 0

        run(test, neuron)


def test_the_events_of_a_job_are_the_ones_of_the_bus() -> None:
    """The reader's first and last event are the neuron's own items, counts included."""
    with FakeNeuron() as neuron:

        async def test(fleet: BusFleet) -> None:
            events = [e for _, e in await drain(fleet.submit([job()])) if not isinstance(e, str)]
            given = neuron.jobs()[0]
            assert events == [*started(given).items, *ended(given, 3).items]
            assert isinstance(started(given), Started)
            assert isinstance(ended(given, 3), Ended)

        run(test, neuron)


def test_a_neuron_is_told_once_of_each_catalogue_and_again_when_it_may_have_forgotten() -> None:
    ours = Profile(id=MODEL, source="x", parallel=3)
    changed = Catalogue(models=[ours], defaults=Defaults(context=700))
    with FakeNeuron(model_state(MODEL, profile="another")) as neuron:

        def offers() -> list[Offer]:
            return [m for m in neuron.received if isinstance(m, Offer)]

        async def test(fleet: BusFleet) -> None:
            await until(lambda: len(offers()) == 1)
            fleet.adopt(changed)
            await until(lambda: len(offers()) == 2)
            assert offers()[1] == Offer(profiles=[ours], defaults=Defaults(context=700))
            fleet.adopt(changed)
            neuron.send(neuron.state(aliases={"told": MODEL}))
            await until(lambda: "aliases" in fleet.nodes()[0]["state"])
            assert len(offers()) == 2
            neuron.send(HelloWanted())
            await until(lambda: len(offers()) == 3)
            assert offers()[2] == offers()[1]
            assert not any(isinstance(m, Load) for m in neuron.received)

        run(test, neuron)


def test_a_prompt_too_long_for_one_neuron_goes_to_one_with_a_longer_context() -> None:
    short, long = FakeNeuron(model_state(MODEL, context=100), name="short"), FakeNeuron(name="long")
    with short, long:

        def too_long(n: FakeNeuron) -> Callable[[str, Job], None]:
            return lambda gateway, given: n._send(gateway, failed(given, Code.CONTEXT_LENGTH_EXCEEDED))

        short.on_job = too_long(short)

        async def test(fleet: BusFleet) -> None:
            for _ in range(6):  # some of them begin at the shorter one
                await drain(fleet.submit([job()]))
            long.on_job = too_long(long)
            assert (await failure(fleet.submit([job()]))).code is Code.CONTEXT_LENGTH_EXCEEDED

        run(test, short, long)
