from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.generation import Generation
from neuron.worker.slots import GROWTH_CELLS, Slots
from tests.support.tasks import make_generation


def test_no_more_are_seated_than_there_are_slots() -> None:
    slots = Slots(2, 10_000)
    first, second, third = (generation_of(i, 10) for i in range(3))
    slots.seat(first)
    slots.seat(second)
    assert not slots.can_seat(third)
    slots.unseat(first)
    assert slots.can_seat(third)


def test_prompt_and_growth_are_reserved_so_that_two_large_prompts_do_not_share_a_small_pool() -> None:
    slots = Slots(4, 200)
    slots.seat(generation_of(0, 100))
    assert not slots.can_seat(generation_of(1, 101 - 2 * GROWTH_CELLS + GROWTH_CELLS))
    assert slots.can_seat(generation_of(1, 100 - 2 * GROWTH_CELLS))


def test_alone_a_prompt_may_fill_the_pool_but_for_one_cell() -> None:
    slots = Slots(4, 200)
    assert slots.can_seat(generation_of(0, 199))
    assert not slots.can_hold(generation_of(0, 200))


def test_the_cheapest_to_redo_holds_the_fewest_cells_and_came_last() -> None:
    slots = Slots(4, 1000)
    seated = [generation_of(i, 100) for i in range(4)]
    for g, position in zip(seated, (50, 20, 20, 0), strict=True):
        slots.seat(g)
        g.position = position
    assert slots.cheapest_to_redo() is seated[2]


def test_nobody_is_sent_back_who_is_alone() -> None:
    slots = Slots(4, 1000)
    only = generation_of(0, 100)
    slots.seat(only)
    only.position = 50
    assert slots.cheapest_to_redo() is None


def test_a_refused_batch_teaches_how_many_cells_there_are() -> None:
    slots = Slots(4, 1000)
    g = generation_of(0, 600)
    slots.seat(g)
    g.position = 400
    slots.note_refusal(101)
    assert slots.cells == 500


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(1, 300)), max_size=40))
def test_sequences_are_never_shared_or_lost(actions: list[tuple[bool, int, int]]) -> None:
    slots = Slots(3, 500)
    for serial, (arrives, which, length) in enumerate(actions):
        if arrives:
            g = generation_of(serial, length)
            if slots.can_seat(g):
                slots.seat(g)
                g.position = length
        elif slots.seated:
            slots.unseat(slots.seated[which % len(slots.seated)])
        slots.check()
        assert slots.used <= slots.cells
        assert [g.serial for g in slots.seated] == sorted(g.serial for g in slots.seated)


def generation_of(serial: int, length: int) -> Generation:
    return make_generation(serial, length, is_seated=False)
