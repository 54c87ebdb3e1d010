import random

from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.host_tier import PIECE_TOKENS, HostTier
from neuron.worker.prefix_cache import shared_length

KEY = "model"


def save(tier: HostTier, tokens: list[int], *, key: str = KEY) -> bool:
    """Save a sequence as the pool does: full pieces, then the rest; a token takes one byte."""
    done = True
    for start in range(0, len(tokens), PIECE_TOKENS):
        end = min(len(tokens), start + PIECE_TOKENS)
        done = done and tier.add(key, tokens[:end], start, bytearray(end - start))
        tier.check()
    return done


def tokens_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def test_a_saved_sequence_is_found_whole_and_in_part() -> None:
    piece, tier = PIECE_TOKENS, HostTier(10_000)
    tokens = tokens_of(1, 2 * piece + 100)
    save(tier, tokens)
    pieces, length = tier.match(KEY, [*tokens, 5, 6])
    assert [(p.start, p.end) for p in pieces] == [(0, piece), (piece, 2 * piece), (2 * piece, 2 * piece + 100)]
    assert length == len(tokens)
    assert tier.match(KEY, [*tokens[:300], -1, *tokens[301:]])[1] == 300
    assert tier.match("another", tokens) == ([], 0)


def test_a_shared_prefix_is_kept_once() -> None:
    tier, system = HostTier(100_000), tokens_of(1, 1024)
    for seed in range(2, 10):
        save(tier, system + tokens_of(seed, 100))
    assert tier.used == 1024 + 8 * 100


def test_a_last_piece_that_has_grown_replaces_the_shorter_one() -> None:
    tier, tokens = HostTier(100_000), tokens_of(1, 900)
    save(tier, tokens[:600])
    save(tier, tokens)
    assert tier.used == 900
    save(tier, tokens[:600])
    assert tier.used == 900


def test_the_least_recently_used_goes_first_and_never_what_others_stand_on() -> None:
    tier, system = HostTier(1024 + 3 * 100), tokens_of(1, 1024)
    for seed in (2, 3, 4):
        save(tier, system + tokens_of(seed, 100))
    assert tier.match(KEY, system + tokens_of(2, 100))[1] == 1124
    save(tier, system + tokens_of(5, 100))
    assert tier.match(KEY, system + tokens_of(3, 100))[1] == 1024
    for seed in (2, 4, 5):
        assert tier.match(KEY, system + tokens_of(seed, 100))[1] == 1124


def test_a_piece_whose_beginning_is_gone_is_not_kept() -> None:
    tier, tokens = HostTier(10_000), tokens_of(1, 1024)
    assert not tier.add(KEY, tokens, PIECE_TOKENS, bytearray(PIECE_TOKENS))
    assert tier.used == 0


def test_a_smaller_budget_holds_at_once() -> None:
    tier = HostTier(10_000)
    save(tier, tokens_of(1, 2000))
    tier.resize(1000)
    tier.check()
    assert tier.match(KEY, tokens_of(1, 2000))[1] == 1000 // PIECE_TOKENS * PIECE_TOKENS
    tier.resize(0)
    assert (tier.used, tier.is_on) == (0, False)


def test_states_that_cannot_be_cut_match_in_full_length_only_and_stand_side_by_side() -> None:
    tier, tokens = HostTier(10_000), tokens_of(1, 900)
    for length in (300, 600, 900):
        assert tier.add(KEY, tokens[:length], 0, bytearray(10), whole=True)
    for wanted, found in ((900, 900), (899, 600), (300, 300), (299, 0)):
        pieces, length = tier.match(KEY, tokens[:wanted], whole=True)
        assert (length, len(pieces)) == (found, int(found > 0))


def test_clearing_one_model_leaves_the_others() -> None:
    tier = HostTier(10_000)
    save(tier, tokens_of(1, 100))
    save(tier, tokens_of(2, 200), key="other")
    tier.clear(KEY)
    tier.check()
    assert (tier.used, tier.used_by("other"), tier.used_by(KEY)) == (200, 200, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1200), st.integers(0, 3)), max_size=12), st.integers(0, 4000)
)
def test_what_is_found_was_saved_and_the_budget_holds(saves: list[tuple[int, int, int]], budget: int) -> None:
    tier, known = HostTier(budget), []
    for seed, length, fork in saves:
        tokens = tokens_of(seed, length)[: length - fork * 10] + [2000 + fork] * (fork * 10)
        save(tier, tokens)
        known.append(tokens)
        pieces, found = tier.match(KEY, tokens)
        assert found <= max(shared_length(tokens, k) for k in known)
        at = 0
        for piece in pieces:
            assert piece.start == at
            at = piece.end
        assert at >= found
