"""A text far beyond the context is refused, or cut, before it is read whole."""

import pytest

from common.errors import Code, RequestError, read_overflow
from common.messages import Infill, Snippet
from neuron.prep.infill import fill_in
from neuron.prep.tokenising import CHARACTERS_A_TOKEN, LONG_TOKEN, MERGES, tokenise_within
from neuron.prep.vocabulary import Gap
from tests.support.fake_engine import FakeVocabulary, Knobs

CONTEXT = 100
HUGE = 10_000_000


class Counting(FakeVocabulary):
    """Remembers how much it was given."""

    def __init__(self, *, file: int | None = 94) -> None:
        super().__init__(Knobs(), "fake")
        self.gap = Gap(91, 92, 93, file)
        self.characters = 0

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return a token for each word."""
        self.characters += len(text)
        return super().tokenise(text, add_special=add_special, parse_special=parse_special)


def within(vocabulary: Counting, text: str) -> list[int]:
    return tokenise_within(vocabulary, text, CONTEXT, "prompt", add_special=True, parse_special=True)


def test_what_may_fit_is_read_whole() -> None:
    long_words = ("w" * 40 + " ") * 50  # 41 characters a token: more than usual, and it fits
    assert len(within(Counting(), long_words)) == 50
    assert len(within(Counting(), "w " * (CONTEXT + MERGES))) == CONTEXT + MERGES  # the exact count is the caller's


@pytest.mark.parametrize("text", ["w " * HUGE, "w" * HUGE, " " * HUGE])
def test_what_cannot_fit_costs_no_more_than_its_beginning(text: str) -> None:
    vocabulary = Counting()
    with pytest.raises(RequestError) as caught:
        within(vocabulary, text)
    assert (caught.value.code, caught.value.param) == (Code.CONTEXT_LENGTH_EXCEEDED, "prompt")
    assert read_overflow(caught.value.message) is not None
    assert vocabulary.characters <= CONTEXT * LONG_TOKEN


@pytest.mark.parametrize("field", ["prefix", "suffix", "prompt"])
def test_the_texts_around_a_gap_are_no_exception(field: str) -> None:
    vocabulary = Counting()
    with pytest.raises(RequestError) as caught:
        fill_in(Infill(**{"prefix": "a", "suffix": "b", field: "w " * HUGE}), vocabulary, CONTEXT, 10)  # type: ignore[arg-type]
    assert caught.value.code is Code.CONTEXT_LENGTH_EXCEEDED
    assert vocabulary.characters <= 3 * CONTEXT * LONG_TOKEN


@pytest.mark.parametrize("file", [94, None])
@pytest.mark.parametrize("extra", [[("x", "w " * HUGE)], [("x" * HUGE, "w")], [("x", "w " * 30)] * 10_000])
def test_of_other_files_no_more_is_read_than_may_fit(extra: list[tuple[str, str]], file: int | None) -> None:
    vocabulary = Counting(file=file)
    snippets = [Snippet(filename=name, text=text) for name, text in extra]
    tokens = fill_in(Infill(prefix="a", suffix="b", extra=snippets), vocabulary, CONTEXT, 10)
    assert len(tokens) <= CONTEXT - 10
    assert vocabulary.characters <= 2 * CONTEXT * CHARACTERS_A_TOKEN
