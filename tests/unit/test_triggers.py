from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.triggers import TriggerMatcher


def rest_of(triggers: list[str], pieces: list[bytes]) -> tuple[int, bytes] | None:
    """Return the number of the piece that completes a trigger, and what follows it there."""
    matcher = TriggerMatcher(triggers)
    for number, piece in enumerate(pieces):
        rest = matcher.rest(piece)
        if rest is not None:
            return number, rest
        matcher.take(piece)
    return None


def test_a_trigger_is_found_across_pieces_and_inside_one() -> None:
    assert rest_of(["<tool_call>"], [b"Yes. <to", b"ol_c", b'all>{"a']) == (2, b'{"a')
    assert rest_of(["<tool_call>"], [b"<tool_call>"]) == (0, b"")
    assert rest_of(["<tool_call>"], [b"<tool_", b"cal", b"</tool_call>"]) is None


def test_the_trigger_that_ends_first_counts() -> None:
    assert rest_of(["cd", "bcde"], [b"abcdef"]) == (0, b"ef")


def test_looking_does_not_count_a_piece() -> None:
    matcher = TriggerMatcher(["ab"])
    assert matcher.rest(b"a") is None
    assert matcher.rest(b"b") is None
    matcher.take(b"a")
    assert matcher.rest(b"b!") == b"!"


@given(st.text("ab", max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_cuts_make_no_difference(text: str, cuts: list[int]) -> None:
    data = text.encode()
    bounds = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    found = rest_of(["aab", "bb"], pieces)
    ends = [data.find(t) + len(t) for t in (b"aab", b"bb") if t in data]
    if not ends:
        assert found is None
        return
    assert found is not None
    number, rest = found
    assert sum(map(len, pieces[: number + 1])) - len(rest) == min(ends)


def test_fifty_kilobytes_without_a_trigger_are_soon_read() -> None:
    matcher = TriggerMatcher(["<tool_call>", "[TOOL_CALLS]"])
    for _ in range(10_000):
        assert matcher.rest(b"<tool") is None
        matcher.take(b"<tool")
    assert matcher.rest(b"_call>{") == b"{"
