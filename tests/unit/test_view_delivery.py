from hypothesis import given
from hypothesis import strategies as st

from common.messages import TokenItem
from cortex.fleet.delivery import Delivery, Verdict


def item(at: int, count: int = 1, attempt: int = 0) -> TokenItem:
    """Return tokens whose text tells where they belong."""
    return TokenItem("j", attempt, at, "".join(f"<{i}>" for i in range(at, at + count)), list(range(at, at + count)))


def begun() -> Delivery:
    """Return a delivery whose Started has come."""
    delivery = Delivery()
    assert delivery.judge_start(0) is Verdict.ACCEPT
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
    assert begun().judge_start(0) is Verdict.DUPLICATE


def test_an_older_attempt_is_stale() -> None:
    delivery = begun()
    assert delivery.begin_attempt() == 1
    assert delivery.judge_tokens(item(0)) is Verdict.STALE
    assert delivery.judge_start(0) is Verdict.STALE
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
