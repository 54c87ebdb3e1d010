from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.cells import Cells


def test_shared_cells_are_used_once_and_freed_with_their_last_holder() -> None:
    cells = Cells(100)
    cells.extend(0, 30)
    cells.share(0, 1, 20)
    assert (cells.used, cells.length(1), cells.alone(0), cells.alone(1)) == (30, 20, 10, 0)
    cells.cut(0)
    assert (cells.used, cells.alone(1)) == (20, 20)
    cells.cut(1)
    assert cells.used == 0


def test_a_sequence_that_grows_after_sharing_grows_alone() -> None:
    cells = Cells(100)
    cells.extend(0, 10)
    cells.share(0, 1, 10)
    cells.extend(0, 5)
    cells.extend(1, 7)
    assert (cells.length(0), cells.length(1), cells.used) == (15, 17, 22)


def test_what_several_hold_together_is_counted_once_with_what_a_newcomer_would_share() -> None:
    cells = Cells(100)
    cells.extend(0, 30)
    cells.share(0, 1, 20)
    cells.extend(2, 40)
    assert cells.held([0, 1]) == 30
    assert cells.held([0, 1], 2, 25) == 55
    assert cells.held([1], 0, 25) == 25


class Model:
    """Cells as objects: what the books have to agree with."""

    def __init__(self) -> None:
        self.held: dict[int, list[object]] = {}

    def used(self) -> int:
        return len({id(c) for held in self.held.values() for c in held})


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["extend", "share", "cut"]), st.integers(0, 4), st.integers(0, 4), st.integers(0, 60)),
    max_size=40,
)


@given(ACTIONS)
def test_the_books_agree_with_the_cells(actions: list[tuple[str, int, int, int]]) -> None:
    books, model = Cells(100_000), Model()
    for action, a, b, count in actions:
        held = model.held.setdefault(a, [])
        if action == "extend" and count:
            books.extend(a, count)
            held += [object() for _ in range(count)]
        elif action == "cut":
            length = min(count, len(held))
            books.cut(a, length)
            del held[length:]
        elif action == "share" and a != b:
            target = model.held.setdefault(b, [])
            if len(held) >= len(target):
                end = len(target) + min(count, len(held) - len(target))
                books.share(a, b, end)
                target += held[len(target) : end]
        books.check()
        assert books.used == model.used()
        for sequence, cells in model.held.items():
            assert books.length(sequence) == len(cells)
            others = {id(c) for s, held in model.held.items() if s != sequence for c in held}
            assert books.alone(sequence) == sum(id(c) not in others for c in cells)
