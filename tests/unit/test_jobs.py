"""The job book: each accepted job is in exactly one place until its one end."""

from common.messages import Job, Text
from neuron.broker.claims import Claims
from neuron.broker.jobs import JobBook
from neuron.broker.peers import LEASE_S, Peers


def job(name: str, model: str = "m", *, attempt: int = 1, budget_ms: int | None = None) -> Job:
    return Job(id=name, attempt=attempt, model=model, request_id="r", input=Text(text="x"), budget_ms=budget_ms)


def test_counts_follow_a_job_through_its_life() -> None:
    book = JobBook()
    entry = book.add("gw", job("a"), 1.0)
    assert (book.running("m"), book.waiting("m")) == (0, 1)
    book.enqueue(entry)
    book.run(entry, "CPU-0", 2.0)
    assert (book.running("m"), book.waiting("m"), book.next("m")) == (1, 0, None)
    assert book.running_on("CPU-0") == [entry]
    book.remove(entry)
    assert (book.running("m"), book.waiting("m"), len(book)) == (0, 0, 0)


def test_a_queue_keeps_the_order_of_acceptance_whatever_the_order_of_preparation() -> None:
    book = JobBook()
    first, second, third = (book.add("gw", job(n), 0.0) for n in "abc")
    for entry in (third, first, second):
        book.enqueue(entry)
    assert [e.job.id for e in book.queue("m")] == ["a", "b", "c"]
    book.remove(second)
    assert [e.job.id for e in book.queue("m")] == ["a", "c"]


def test_a_job_belongs_to_its_gateway() -> None:
    book = JobBook()
    entry = book.add("gw", job("a"), 0.0)
    assert book.find_of("gw", "a") is entry
    assert book.find_of("other", "a") is None
    assert book.of_gateway("other") == []


def test_the_budget_becomes_a_deadline_on_this_clock() -> None:
    book = JobBook()
    assert book.add("gw", job("a", budget_ms=1500), 10.0).deadline == 11.5
    assert book.add("gw", job("b"), 10.0).deadline is None


def test_the_first_claim_holds_until_it_is_too_old() -> None:
    claims = Claims()
    assert claims.record("m", "beast", (), 0.0) == "beast"
    assert claims.record("m", "benjy", (), 1.0) == "beast"
    assert claims.record("m", "benjy", (), 31.0) == "benjy"


def test_a_claim_on_a_neuron_that_cannot_take_the_model_is_replaced() -> None:
    claims = Claims()
    claims.record("m", "beast", (), 0.0)
    assert claims.record("m", "benjy", ["beast"], 1.0) == "benjy"
    assert claims.record("m", "beast", (), 2.0) == "benjy"


def test_a_silent_gateway_loses_its_lease_and_a_stranger_has_none() -> None:
    peers = Peers()
    assert not peers.hear("gw", 0.0)
    peers.greet("gw", "gateway", "one", 0.0)
    assert peers.silent(LEASE_S) == []
    assert [p.incarnation for p in peers.silent(LEASE_S + 0.1)] == ["gw"]
    assert peers.hear("gw", LEASE_S)
    assert peers.silent(LEASE_S + 0.1) == []
