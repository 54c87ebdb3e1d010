"""What a replica remembers of the conversations that have been through it."""

from neuron.memory.prefixes import SEQUENCES, TAIL, Prefixes


def test_the_next_turn_of_a_conversation_is_recognised_and_takes_its_place() -> None:
    prefixes = Prefixes()
    prefixes.add(["s", "a1"])
    assert prefixes.match(["s", "a1", "a2", "a3"]) == 2
    prefixes.add(["s", "a1", "a2", "a3"])
    assert prefixes.links() == ["s", "a1", "a2", "a3"]


def test_another_conversation_with_the_same_beginning_is_not_drawn_here() -> None:
    prefixes = Prefixes()
    prefixes.add(["s", "a1"])
    assert prefixes.match(["s", "b1"]) == 0
    assert prefixes.match(["t", "b1"]) == 0
    assert prefixes.match([]) == 0


def test_a_conversation_that_went_another_way_stays_beside_the_new_one() -> None:
    prefixes = Prefixes()
    prefixes.add(["s", "a1", "a2"])
    prefixes.add(["s", "a1", "x2"])
    assert prefixes.match(["s", "a1", "a2", "a3"]) == 3
    assert prefixes.match(["s", "a1", "x2", "x3"]) == 3


def test_the_oldest_conversation_is_forgotten_first_and_only_a_tail_is_kept() -> None:
    prefixes = Prefixes()
    for number in range(SEQUENCES + 1):
        prefixes.add([f"{number}.{step}" for step in range(TAIL + 2)])
    assert len(prefixes.links()) == SEQUENCES * TAIL
    assert prefixes.match(["s", "0.5"]) == 0
    assert prefixes.match(["s", "1.5"]) == 2
    assert prefixes.match(["s", "1.0"]) == 0


def test_nothing_is_resident_after_the_worker_is_gone() -> None:
    prefixes = Prefixes()
    prefixes.add(["s", "a"])
    prefixes.clear()
    assert prefixes.match(["s", "a"]) == 0
