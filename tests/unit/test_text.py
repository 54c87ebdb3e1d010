import itertools

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.text import TextStream


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    edges = [0, *sorted(b % (len(data) + 1) for b in borders), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(max_size=20), st.lists(st.integers(0, 100), max_size=10))
def test_text_survives_any_split_of_its_bytes(text: str, borders: list[int]) -> None:
    stream = TextStream([])
    assert "".join([stream.push(p) for p in cut(text.encode(), borders)]) + stream.finish() == text


@given(st.binary(max_size=20), st.lists(st.integers(0, 100), max_size=10))
def test_any_split_of_any_bytes_gives_the_same_text(data: bytes, borders: list[int]) -> None:
    stream = TextStream([])
    shown = "".join([stream.push(p) for p in cut(data, borders)]) + stream.finish()
    assert shown == data.decode("utf-8", "replace")


@given(st.text("añ😀", max_size=12), st.lists(st.integers(0, 100), max_size=10), st.integers(0, 12))
def test_replaying_the_pieces_restores_what_was_held_back(text: str, borders: list[int], cut_at: int) -> None:
    pieces, stops = cut(text.encode(), borders), ["ñ😀", "aaa"]
    whole, replayed = TextStream(stops), TextStream(stops)
    delivered = [whole.push(p) for p in pieces[:cut_at]]
    assert [replayed.push(p) for p in pieces[:cut_at]] == delivered
    assert replayed.matched == whole.matched
    rest = pieces[cut_at:]
    assert [replayed.push(p) for p in rest] + [replayed.finish()] == [whole.push(p) for p in rest] + [whole.finish()]


def test_half_a_character_is_never_shown() -> None:
    stream = TextStream([])
    emoji = "😀".encode()
    assert [stream.push(emoji[i : i + 1]) for i in range(4)] == ["", "", "", "😀"]


def test_half_a_character_at_the_end_becomes_the_replacement_character() -> None:
    stream = TextStream([])
    assert (stream.push("a😀".encode()[:3]), stream.finish()) == ("a", "\ufffd")


def test_a_stop_string_may_begin_inside_a_token_of_half_characters() -> None:
    stream = TextStream(["😀!"])
    emoji = "😀".encode()
    shown = stream.push(b"hi " + emoji[:2]) + stream.push(emoji[2:]) + stream.push(b"! more")
    assert (shown, stream.matched) == ("hi ", "😀!")
