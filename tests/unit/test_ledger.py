"""The ledger never promises what is not there, and forgets nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.memory.ledger import Ledger


def test_what_is_promised_is_no_longer_free() -> None:
    ledger = Ledger({"a": 1000, "b": 500})
    ledger.reserve("a", "m", 400)
    assert (ledger.free_mb("a"), ledger.reserved_mb("a"), ledger.free_mb("b")) == (600, 400, 500)
    ledger.release("a", "m")
    ledger.release("a", "m")
    assert ledger.free_mb("a") == 1000


def test_a_promise_that_cannot_be_kept_is_a_programmers_error() -> None:
    ledger = Ledger({"a": 100})
    assert not ledger.can_hold("a", 101)
    with pytest.raises(AssertionError, match="do not fit"):
        ledger.reserve("a", "m", 101)


def test_a_measurement_replaces_the_promise_even_beyond_the_capacity() -> None:
    ledger = Ledger({"a": 100})
    ledger.reserve("a", "m", 60)
    ledger.reconcile("a", "m", 130)
    assert (ledger.reserved_mb("a"), ledger.free_mb("a")) == (130, 0)
    ledger.reconcile("a", "unknown", 5)
    assert ledger.reserved_mb("a") == 130


def test_memory_of_unknown_size_is_not_zero() -> None:
    ledger = Ledger({"a": None})
    assert ledger.free_mb("a") is None
    assert ledger.can_hold("a", 10**9)


def test_what_a_model_has_not_given_back_is_given_to_nobody_until_its_process_ends() -> None:
    ledger = Ledger({"a": 100})
    ledger.reserve("a", "m", 60)
    ledger.withhold("a", 30)
    ledger.release("a", "m")
    assert (ledger.free_mb("a"), ledger.unreleased_mb("a"), ledger.room_mb("a")) == (70, 30, 100)
    assert ledger.can_hold("a", 70)
    assert not ledger.can_hold("a", 71)
    ledger.restore("a")
    assert (ledger.free_mb("a"), ledger.unreleased_mb("a")) == (100, 0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("klmn"), st.integers(1, 600)), max_size=40))
def test_promises_never_exceed_a_capacity(steps: list[tuple[str, str, int]]) -> None:
    ledger = Ledger({"a": 1000, "b": 300})
    held: dict[tuple[str, str], int] = {}
    for device, model, size in steps:
        if (device, model) in held:
            ledger.release(device, model)
            del held[device, model]
        elif ledger.can_hold(device, size):
            ledger.reserve(device, model, size)
            held[device, model] = size
        for name, capacity in (("a", 1000), ("b", 300)):
            assert ledger.reserved_mb(name) == sum(mb for (d, _), mb in held.items() if d == name) <= capacity
