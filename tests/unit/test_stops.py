from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.stops import StopMatcher

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = "".join([matcher.push(p) for p in pieces])
    return (shown if matcher.matched else shown + matcher.finish()), matcher.matched


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_every_split_of_a_text_gives_the_same_result(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert run(pieces, stops) == run(list(text), stops) == run([text], stops)


@given(LETTERS, STOPS)
def test_what_comes_out_ends_before_the_stop_string_that_ends_first(text: str, stops: list[str]) -> None:
    ends = sorted((text.index(s) + len(s), -len(s), s) for s in stops if s in text)
    expected = (text[: ends[0][0] - len(ends[0][2])], ends[0][2]) if ends else (text, None)
    assert run(list(text), stops) == expected


def test_half_a_stop_string_is_held_back_and_shown_when_it_is_none_after_all() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go ST") == "go "
    assert matcher.push("ART") == "START"
    assert matcher.matched is None


def test_nothing_of_a_stop_string_and_nothing_after_it_is_shown() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go S") + matcher.push("TO") + matcher.push("P on") == "go "
    assert (matcher.matched, matcher.push("more"), matcher.finish()) == ("STOP", "", "")


def test_held_text_is_returned_at_the_end() -> None:
    matcher = StopMatcher(["STOP"])
    assert (matcher.push("ST"), matcher.finish(), matcher.finish()) == ("", "ST", "")


def test_empty_stop_strings_stop_nothing() -> None:
    assert run(["abc"], [""]) == ("abc", None)
