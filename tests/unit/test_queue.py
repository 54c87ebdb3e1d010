"""Whose turn it is: fair shares of the slots, and of the places in the queue."""

from hypothesis import given
from hypothesis import strategies as st

from common.messages import Job, Text
from neuron.broker.jobs import Entry, JobBook


def job(name: str, principal: str, talk: str = "", priority: int = 100) -> Job:
    return Job(
        id=name,
        attempt=1,
        model="m",
        request_id="r",
        input=Text(text="x"),
        principal=principal,
        priority=priority,
        prefix_chain=["system", talk] if talk else [],
    )


class Slots:
    """A model with a few slots and a queue."""

    def __init__(self, count: int) -> None:
        self.book = JobBook()
        self.count = count
        self.running: list[Entry] = []
        self.order: list[str] = []

    def submit(self, *jobs: Job) -> None:
        for one in jobs:
            self.book.enqueue(self.book.add("gw", one, 0.0))
        self.fill()

    def fill(self) -> None:
        while len(self.running) < self.count and (entry := self.book.next("m")) is not None:
            self.book.run(entry, "CPU-0", 0.0)
            self.running.append(entry)
            self.order.append(entry.job.id)

    def end(self, index: int = 0) -> None:
        self.book.remove(self.running.pop(index))
        self.fill()


def test_one_who_sends_much_does_not_keep_another_waiting() -> None:
    slots = Slots(1)
    slots.submit(*(job(f"a{i}", "alice") for i in range(8)))
    slots.submit(job("b0", "bob"), job("b1", "bob"))
    for _ in range(9):
        slots.end()
    assert slots.order[:5] == ["a0", "b0", "a1", "b1", "a2"]


def test_conversations_of_one_principal_share_its_turns() -> None:
    slots = Slots(1)
    slots.submit(*(job(f"x{i}", "alice", "agent") for i in range(4)), job("y", "alice", "chat"))
    for _ in range(4):
        slots.end()
    assert slots.order == ["x0", "y", "x1", "x2", "x3"]


def test_slots_in_use_count_not_only_turns() -> None:
    slots = Slots(4)
    slots.submit(*(job(f"a{i}", "alice") for i in range(6)))
    slots.submit(*(job(f"b{i}", "bob") for i in range(6)))
    slots.end()
    slots.end()
    assert sorted(e.job.principal for e in slots.running) == ["alice", "alice", "bob", "bob"]


def test_alone_everybody_is_served_in_the_order_of_acceptance() -> None:
    slots = Slots(2)
    slots.submit(*(job(str(i), "alice", "talk") for i in range(6)))
    for _ in range(4):
        slots.end()
    assert slots.order == list("012345")


def test_a_full_queue_still_takes_who_has_less_than_a_share() -> None:
    book = JobBook()
    for i in range(10):
        book.add("gw", job(f"a{i}", "alice"), 0.0)
    assert not book.may_wait("m", "alice", 10, 100)
    assert book.may_wait("m", "bob", 10, 100)
    for i in range(5):
        book.add("gw", job(f"b{i}", "bob"), 0.0)
    assert not book.may_wait("m", "bob", 10, 100)
    for i in range(5):
        book.add("gw", job(f"c{i}", f"c{i}"), 0.0)
    assert not book.may_wait("m", "eve", 10, 100)


def test_only_jobs_up_to_a_serial_number_can_be_asked_for() -> None:
    book = JobBook()
    entries = [book.add("gw", job(n, n), 0.0) for n in "ab"]
    for entry in entries:
        book.enqueue(entry)
    assert book.next("m", entries[0].serial) is entries[0]
    book.remove(entries[0])
    assert book.next("m", entries[0].serial) is None
    assert book.next("m") is entries[1]


scripts = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abc"), st.sampled_from("xyz")),
        st.tuples(st.just("end"), st.integers(0, 3), st.just("")),
    ),
    max_size=60,
)


@given(scripts)
def test_nobody_waits_while_another_with_more_running_jobs_is_served(script: list[tuple[str, object, str]]) -> None:
    slots = Slots(3)
    for serial, (what, value, talk) in enumerate(script):
        before = list(slots.running)
        if what == "submit":
            slots.submit(job(str(serial), str(value), talk))
        elif slots.running:
            index = int(str(value)) % len(slots.running)
            before.pop(index)
            slots.end(index)
        for entry in slots.running[len(before) :]:
            held = [e.job.principal for e in before]
            for waiting in slots.book.queue("m"):
                assert held.count(entry.job.principal) <= held.count(waiting.job.principal)
    while slots.running:
        slots.end()
    assert len(slots.order) == sum(what == "submit" for what, *_ in script)
    assert len(slots.book) == 0


def test_jobs_that_nobody_answers_for_are_never_ahead_of_those_of_keys() -> None:
    slots = Slots(1)
    slots.submit(*(job(f"a{i}", f"10.0.0.{i}", priority=200) for i in range(4)))
    slots.submit(*(job(f"k{i}", "key:1") for i in range(3)))
    for _ in range(6):
        slots.end()
    assert slots.order == ["a0", "k0", "k1", "k2", "a1", "a2", "a3"]


def test_a_flood_of_them_takes_no_place_in_the_queue_from_a_key() -> None:
    slots = Slots(0)
    slots.submit(*(job(f"a{i}", f"10.0.0.{i}", priority=200) for i in range(20)))
    assert not slots.book.may_wait("m", "10.0.1.1", 10, 200)
    assert slots.book.may_wait("m", "key:1", 10, 100)
