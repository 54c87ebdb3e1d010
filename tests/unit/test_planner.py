import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.engine import CHUNK_TOKENS
from neuron.worker.planner import FIRST_CHUNK, MIN_CHUNK, Pace, Plan, plan
from tests.support.tasks import make_generation as generation


def lengths(batch: Plan | None) -> dict[int, int]:
    assert batch is not None
    return {c.sequence: len(c.tokens) for c in batch.chunks}


def test_running_sequences_come_first_and_each_gets_its_token() -> None:
    batch = plan([generation(0, 50), generation(1, 9, position=8), generation(2, 5, position=4)], 1000, 16)
    assert batch is not None
    assert [(c.sequence, c.position, len(c.tokens), c.wants_logits) for c in batch.chunks] == [
        (1, 8, 1, True),
        (2, 4, 1, True),
        (0, 0, 16, False),
    ]
    assert (batch.decodes, batch.prefills) == (2, 16)


def test_what_the_first_prompt_leaves_of_the_chunk_is_the_next_ones() -> None:
    assert lengths(plan([generation(0, 10), generation(1, 10), generation(2, 10)], 1000, 15)) == {
        0: 10,
        1: 5,
    }


def test_logits_are_wanted_of_a_prompts_last_token_only() -> None:
    batch = plan([generation(0, 10, position=4)], 1000, 6)
    assert batch is not None
    assert batch.chunks[0].wants_logits


def test_without_cells_for_the_decode_tokens_there_is_no_batch() -> None:
    assert plan([generation(0, 9, position=8), generation(1, 9, position=8)], 1, 512) is None


def test_prompts_take_only_the_cells_that_decode_tokens_leave() -> None:
    assert lengths(plan([generation(0, 9, position=8), generation(1, 100)], 11, 512)) == {0: 1, 1: 10}


@given(
    st.lists(st.tuples(st.integers(2, 900), st.integers(0, 899)), max_size=12),
    st.integers(0, 1200),
    st.integers(1, 600),
)
def test_no_batch_exceeds_the_chunk_the_cells_or_the_engine(
    shapes: list[tuple[int, int]], free_cells: int, chunk: int
) -> None:
    seated = [generation(i, n, position=min(p, n - 1)) for i, (n, p) in enumerate(shapes)]
    batch = plan(seated, free_cells, chunk)
    if batch is None:
        assert not seated or free_cells < max(1, sum(g.is_decoding for g in seated))
        return
    rows = batch.decodes + batch.prefills
    assert rows <= min(free_cells, CHUNK_TOKENS)
    assert batch.prefills <= chunk
    assert batch.decodes == sum(g.is_decoding for g in seated)


class Device:
    """Takes decode_s for decode tokens and a + b × position seconds a prompt token."""

    def __init__(self, decode_s: float, a: float, b: float) -> None:
        self.decode_s, self.a, self.b = decode_s, a, b

    def seconds(self, batch: Plan) -> float:
        prompts = sum(
            (self.a + self.b * (c.position + len(c.tokens) / 2)) * len(c.tokens) for c in batch.chunks[batch.decodes :]
        )
        return prompts + (self.decode_s if batch.decodes else 0.0)


def prefill(pace: Pace, device: Device, length: int, budget_s: float, running: int) -> list[float]:
    """Return the times of the steps that prefill a prompt beside `running` sequences."""
    runners = [generation(i + 1, 9, position=8) for i in range(running)]
    prompt, times = generation(0, length), []
    while prompt.pending > 0:
        chunk = pace.chunk(prompt.position, budget_s, len(runners))
        batch = plan([prompt, *runners], 100_000, chunk)
        assert batch is not None
        times.append(device.seconds(batch))
        pace.observe(batch, times[-1])
        prompt.position += next(len(c.tokens) for c in batch.chunks if c.sequence == 0)
    return times


def decode(pace: Pace, device: Device, running: int, steps: int) -> None:
    batch = plan([generation(i, 9, position=8) for i in range(running)], 100, 1)
    assert batch is not None
    for _ in range(steps):
        pace.observe(batch, device.seconds(batch))


@pytest.mark.parametrize("a", [0.0005, 0.001, 0.002])
def test_steps_fill_the_budget_and_do_not_exceed_it_by_much(a: float) -> None:
    pace, device = Pace(), Device(0.03, a, a / 6000)
    decode(pace, device, 4, 5)
    times = prefill(pace, device, 4000, 0.25, 4)
    assert max(times[1:]) < 0.3
    if a > 0.0005:  # the fast one is limited by the engine's batch
        assert min(times[2:-1]) > 0.2


def test_one_slow_moment_is_forgotten() -> None:
    pace, device = Pace(), Device(0.03, 0.004, 0.0)
    decode(pace, device, 4, 5)
    prefill(pace, device, 1000, 0.25, 4)
    usual = pace.chunk(0, 0.25, 4)
    prefill(pace, Device(0.03, 0.4, 0.0), 300, 0.25, 4)
    assert pace.chunk(0, 0.25, 4) < usual / 2
    prefill(pace, device, 1000, 0.25, 4)
    assert pace.chunk(0, 0.25, 4) >= 0.9 * usual


def test_a_long_prompt_that_follows_a_short_one_stays_in_its_budget_at_its_far_end() -> None:
    pace, device = Pace(), Device(0.03, 0.003, 0.000001)
    decode(pace, device, 4, 5)
    prefill(pace, device, 300, 0.25, 4)
    times = prefill(pace, device, 16000, 0.25, 4)
    assert sum(t > 0.3 for t in times) <= len(times) / 50


def test_the_first_chunk_beside_streams_of_an_unknown_model_is_short() -> None:
    assert Pace().chunk(0, 0.25, 4) == FIRST_CHUNK


def test_a_prompt_gets_on_where_one_token_takes_longer_than_the_budget() -> None:
    pace, device = Pace(), Device(5.0, 1.0, 0.0)
    decode(pace, device, 1, 3)
    prefill(pace, device, 100, 0.25, 1)
    assert pace.chunk(0, 0.25, 1) == MIN_CHUNK
