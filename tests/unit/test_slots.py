from neuron.worker.cells import Cells
from neuron.worker.generation import Generation
from neuron.worker.slots import GROWTH_CELLS, REST_S, RETURN_CELLS, Slots
from tests.support.tasks import make_generation


def test_no_more_are_seated_than_there_are_slots() -> None:
    slots = Slots(2, Cells(10_000))
    first, second, third = (generation_of(i, 10) for i in range(3))
    slots.seat(first, 0)
    slots.seat(second, 1)
    assert not slots.can_seat(third)
    slots.unseat(first)
    assert slots.can_seat(third)


def test_prompt_and_growth_are_reserved_so_that_two_large_prompts_do_not_share_a_small_pool() -> None:
    slots = Slots(4, Cells(200))
    slots.seat(generation_of(0, 100), 0)
    assert not slots.can_seat(generation_of(1, 101 - 2 * GROWTH_CELLS))
    assert slots.can_seat(generation_of(1, 100 - 2 * GROWTH_CELLS))


def test_what_an_answer_may_become_is_not_reserved() -> None:
    slots = Slots(8, Cells(120_000))
    for i in range(8):
        generation = generation_of(i, 10_000, max_tokens=32_000)
        assert slots.can_seat(generation)
        slots.seat(generation, i)


def test_shared_cells_are_reserved_once() -> None:
    cells = Cells(1000)
    slots = Slots(4, cells)
    running = generation_of(0, 600)
    slots.seat(running, 0)
    cells.extend(0, 600)
    running.position = 600
    assert not slots.can_seat(generation_of(1, 650))
    assert slots.can_seat(generation_of(1, 650), 0, 550)


def test_who_was_sent_back_returns_when_there_is_room_to_get_on() -> None:
    slots = Slots(4, Cells(1000))
    slots.seat(generation_of(0, 400), 0)
    returning = generation_of(1, 100, max_tokens=1000)
    assert slots.can_seat(returning)
    returning.sent_back_at = 1.0
    assert 400 + GROWTH_CELLS + 100 + RETURN_CELLS > 1000
    assert not slots.can_seat(returning)


def test_alone_a_prompt_may_fill_the_pool_but_for_one_cell() -> None:
    slots = Slots(4, Cells(200))
    assert slots.can_seat(generation_of(0, 199))
    assert not slots.can_hold(generation_of(0, 200))


def test_the_cheapest_to_redo_frees_the_fewest_cells_and_came_last() -> None:
    slots, seated = seated_with(50, 20, 20, 0)
    assert slots.cheapest_to_redo(0.0) is seated[2]


def test_nobody_is_sent_back_twice_within_seconds_while_there_is_another() -> None:
    slots, seated = seated_with(50, 20, 20, 0)
    seated[2].sent_back_at = 10.0
    assert slots.cheapest_to_redo(10.0 + REST_S - 0.1) is seated[1]
    assert slots.cheapest_to_redo(10.0 + REST_S) is seated[2]


def test_nobody_is_sent_back_who_is_alone() -> None:
    slots, _ = seated_with(50)
    assert slots.cheapest_to_redo(0.0) is None


def test_of_two_that_share_all_they_hold_the_later_one_is_sent_back() -> None:
    cells = Cells(1000)
    slots = Slots(4, cells)
    first, second = generation_of(0, 100), generation_of(1, 100)
    slots.seat(first, 0)
    slots.seat(second, 1)
    cells.extend(0, 99)
    cells.share(0, 1, 99)
    first.position = second.position = 99
    assert slots.cheapest_to_redo(0.0) is not None


def seated_with(*positions: int) -> tuple[Slots, list[Generation]]:
    cells = Cells(1000)
    slots, seated = Slots(4, cells), [generation_of(i, 100) for i in range(len(positions))]
    for i, (generation, position) in enumerate(zip(seated, positions, strict=True)):
        slots.seat(generation, i)
        if position:
            cells.extend(i, position)
        generation.position = position
    return slots, seated


def generation_of(serial: int, length: int, max_tokens: int = 100) -> Generation:
    return make_generation(serial, length, is_seated=False, max_tokens=max_tokens)
