from hypothesis import given
from hypothesis import strategies as st

from common.messages import StartedItem, TokenItem
from cortex.fleet.delivery import Delivery, Verdict


def item(at: int, count: int = 1, attempt: int = 0) -> TokenItem:
    """Return tokens whose text tells where they belong."""
    return TokenItem("j", attempt, at, "".join(f"<{i}>" for i in range(at, at + count)), list(range(at, at + count)))


def start(attempt: int = 0, *, resumed: int = 0, vocabulary: str = "v") -> StartedItem:
    return StartedItem(
        job="j", attempt=attempt, prompt_tokens=3, max_tokens=9, resumed=resumed, vocab_fingerprint=vocabulary
    )


def begun() -> Delivery:
    """Return a delivery whose Started has come."""
    delivery = Delivery()
    assert delivery.judge_start(start()) is Verdict.ACCEPT
    return delivery


def test_tokens_in_order_are_accepted_and_their_number_checked_at_the_end() -> None:
    delivery = begun()
    assert [delivery.judge_tokens(item(0, 2)), delivery.judge_tokens(item(2))] == [Verdict.ACCEPT] * 2
    assert delivery.judge_end(0, 3) is Verdict.ACCEPT


def test_an_end_that_names_another_number_is_a_gap() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0))
    assert delivery.judge_end(0, 2) is Verdict.GAP


def test_tokens_before_the_start_are_a_gap() -> None:
    assert Delivery().judge_tokens(item(0)) is Verdict.GAP
    assert Delivery().judge_end(0, 0) is Verdict.GAP


def test_a_second_start_is_a_duplicate() -> None:
    assert begun().judge_start(start()) is Verdict.DUPLICATE


def test_an_older_attempt_is_stale() -> None:
    delivery = begun()
    assert delivery.begin_attempt() == 1
    assert delivery.judge_tokens(item(0)) is Verdict.STALE
    assert delivery.judge_start(start()) is Verdict.STALE
    assert delivery.judge_end(0, 0) is Verdict.STALE


def test_tokens_that_overlap_in_part_are_a_gap() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0, 2))
    assert delivery.judge_tokens(item(1, 2)) is Verdict.GAP


def test_text_without_tokens_passes_at_the_right_place_only() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0, 2))
    assert delivery.judge_tokens(TokenItem("j", 0, 2, "held back", [])) is Verdict.ACCEPT
    assert delivery.judge_tokens(TokenItem("j", 0, 3, "held back", [])) is Verdict.GAP


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3))))
def test_whatever_arrives_nothing_is_repeated_altered_or_skipped(arrivals: list[tuple[int, int]]) -> None:
    delivery, text = begun(), ""
    for at, count in arrivals:
        verdict = delivery.judge_tokens(item(at, count))
        if verdict is Verdict.GAP:
            break
        if verdict is Verdict.ACCEPT:
            text += item(at, count).text
    assert text == "".join(f"<{i}>" for i in range(delivery.held))


def test_another_attempt_goes_on_where_the_last_one_ended() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0, 2))
    delivery.begin_attempt()
    assert (delivery.resume_tokens, delivery.resume_vocabulary, delivery.resume_text) == ([0, 1], "v", "<0><1>")
    assert delivery.judge_tokens(item(2, attempt=1)) is Verdict.GAP  # not before its own Started
    assert delivery.judge_start(start(1, resumed=2)) is Verdict.ACCEPT
    assert delivery.judge_tokens(item(2, attempt=1)) is Verdict.ACCEPT
    assert delivery.judge_end(1, 3) is Verdict.ACCEPT
    assert delivery.first is not None
    assert delivery.first.attempt == 0


def test_an_attempt_that_was_given_other_tokens_than_are_held_is_a_gap() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0, 2))
    delivery.begin_attempt()
    assert delivery.judge_start(start(1, resumed=1)) is Verdict.GAP


def test_another_vocabulary_counts_anew_and_is_resumed_by_text_from_then_on() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0, 2))
    delivery.begin_attempt()
    assert delivery.judge_start(start(1, resumed=5, vocabulary="w")) is Verdict.ACCEPT
    assert delivery.judge_tokens(TokenItem("j", 1, 5, "!", [70])) is Verdict.ACCEPT
    assert (delivery.held, delivery.resume_text) == (6, "<0><1>!")
    delivery.begin_attempt()
    assert (delivery.resume_tokens, delivery.resume_vocabulary) == ([], "")
    assert delivery.judge_start(start(2, resumed=6, vocabulary="w")) is Verdict.ACCEPT
    assert delivery.judge_tokens(TokenItem("j", 2, 6, "?", [71])) is Verdict.ACCEPT


def test_text_without_tokens_is_final_only_with_the_end() -> None:
    delivery = begun()
    delivery.judge_tokens(item(0))
    delivery.judge_tokens(TokenItem("j", 0, 1, "held back", []))
    assert [w.text for w in delivery.last_words] == ["held back"]
    assert delivery.resume_text == "<0>"
    delivery.begin_attempt()
    assert delivery.last_words == []
