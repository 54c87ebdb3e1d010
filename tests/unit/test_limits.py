"""Limits: seats, windows and reservations of several processes, which share a piece of memory and nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Code, RequestError
from cortex.access.access import Identity
from cortex.access.keys import ApiKey, Limits
from cortex.access.meter import Meter
from cortex.access.rows import Rows
from cortex.access.seats import Seats

NOON = 1_800_000_000.0 // 86400 * 86400 + 43200
PLACES = 3


class Host:
    """Gateway processes on one host, and a clock."""

    def __init__(self, file: Path | None = None) -> None:
        self.rows = Rows(PLACES, 1025, file)
        self.now = NOON
        self.meters = [Meter(self.rows, place, lambda: self.now) for place in range(PLACES)]
        self.turn = 0

    def next(self) -> Meter:
        """Return the process that the next request falls to."""
        self.turn += 1
        return self.meters[self.turn % PLACES]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.rows.close()


def ada(row: int = 7, id: str = "ad" * 4, **limits: int) -> Identity:
    key = ApiKey(id=id, hash="", row=row, created_at=0, limits=Limits(**limits))
    return Identity("key:x", "use", key, limits=key.limits)


def refused(host: Host, identity: Identity) -> RequestError:
    with pytest.raises(RequestError) as caught:
        host.next().admit(identity)
    assert caught.value.code is Code.RATE_LIMIT_EXCEEDED
    return caught.value


def test_who_has_no_limits_is_not_counted(host: Host) -> None:
    assert host.next().admit(ada()) is None
    assert host.next().admit(Identity("admin", "admin")) is None


def test_seats_are_those_of_all_processes_and_come_back(host: Host) -> None:
    tickets = [host.next().admit(ada(concurrent=4)) for _ in range(4)]
    assert "4 requests at a time" in refused(host, ada(concurrent=4)).message
    for ticket in tickets[:2]:
        assert ticket
        ticket.close()
    assert host.next().admit(ada(concurrent=4))
    assert host.next().admit(ada(concurrent=4))
    refused(host, ada(concurrent=4))


def test_no_sixty_seconds_hold_more_requests_than_are_allowed(host: Host) -> None:
    ann = ada(requests_per_minute=10)
    admitted: list[float] = []
    for step in range(700):
        host.now = NOON + step * 0.37
        with contextlib.suppress(RequestError):
            host.next().admit(ann)
            admitted.append(host.now)
    for at in admitted:
        assert sum(1 for other in admitted if at <= other < at + 60) <= 11
    assert len(admitted) >= 10 * 700 * 0.37 / 60


def test_after_the_time_that_was_told_there_is_room_again(host: Host) -> None:
    ann = ada(requests_per_minute=5)
    for _ in range(5):
        host.now += 3
        host.next().admit(ann)
    wait_s = refused(host, ann).retry_after_s
    assert wait_s
    assert 40 < wait_s < 60
    host.now += wait_s
    assert host.next().admit(ann)
    refused(host, ann)


def test_refused_requests_do_not_count(host: Host) -> None:
    ann = ada(concurrent=1, requests_per_minute=3)
    for _ in range(3):
        ticket = host.next().admit(ann)
        for _ in range(20):
            refused(host, ann)
        assert ticket
        ticket.close()
    assert "a minute" in refused(host, ann).message


def test_what_a_running_request_may_still_take_is_counted_with_it(host: Host) -> None:
    ann = ada(tokens_per_minute=1000)
    first, second = host.next().admit(ann), host.next().admit(ann)
    assert first
    assert second
    first.reserve(600)
    with pytest.raises(RequestError, match="1000 tokens a minute"):
        second.reserve(401)
    second.reserve(400)
    refused(host, ann)
    first.charge(50)
    first.charge(120)
    first.close()  # 480 come back
    third = host.next().admit(ann)
    assert third
    with pytest.raises(RequestError):
        third.reserve(481)
    third.reserve(480)


def test_a_request_that_wants_more_than_there_ever_is_runs_when_nothing_else_was_used(host: Host) -> None:
    ann = ada(tokens_per_minute=100)
    first = host.next().admit(ann)
    assert first
    first.reserve(100_000)
    first.charge(30)
    first.close()
    second = host.next().admit(ann)
    assert second
    with pytest.raises(RequestError):
        second.reserve(100_000)
    host.now += 62
    second.reserve(100_000)


def test_a_day_ends_at_midnight(host: Host) -> None:
    ann = ada(tokens_per_day=100)
    ticket = host.next().admit(ann)
    assert ticket
    ticket.charge(100)
    assert refused(host, ann).retry_after_s == 43200
    host.now += 43199
    refused(host, ann)
    host.now += 1
    assert host.next().admit(ann)


def test_those_without_a_key_share_one_limit(host: Host) -> None:
    limits = Limits(concurrent=1)
    one, two = (Identity(name, "use", is_anonymous=True, limits=limits) for name in ("10.0.0.1", "10.0.0.2"))
    assert host.next().admit(one)
    assert "who have no key is 1 requests at a time" in refused(host, two).message
    assert host.next().admit(ada(concurrent=1))


def test_a_process_that_is_gone_leaves_its_windows_and_gives_back_its_seats(host: Host) -> None:
    ann = ada(concurrent=3, requests_per_minute=5, tokens_per_minute=1000)
    for meter in host.meters:
        ticket = meter.admit(ann)
        assert ticket
        ticket.reserve(300)
        ticket.charge(10)
    refused(host, ann)
    host.rows.vacate(1)
    ticket = host.next().admit(ann)
    assert ticket
    with pytest.raises(RequestError):
        ticket.reserve(1000 - 2 * 290 - 30 + 1)
    ticket.reserve(1000 - 2 * 290 - 30)
    use = host.rows.use(7, int("ad" * 4, 16) | 1 << 40, host.now)
    assert (use.seats, use.requests, use.tokens) == (3, 4, 30)


def test_a_row_that_a_new_key_takes_over_begins_empty(host: Host) -> None:
    old = host.next().admit(ada(concurrent=1, tokens_per_day=10))
    assert old
    old.charge(10)
    new = ada(id="be" * 4, concurrent=1, tokens_per_day=10)
    ticket = host.next().admit(new)
    assert ticket
    refused(host, new)
    old.close()  # its seat was not the new key's
    refused(host, new)


def test_windows_outlive_a_restart_with_another_number_of_processes(tmp_path: Path) -> None:
    ann = ada(requests_per_minute=4, tokens_per_day=100, concurrent=4)
    file = tmp_path / "limits.map"
    before = Host(file)
    for _ in range(4):
        ticket = before.next().admit(ann)
        assert ticket
        ticket.charge(20)
    before.rows.close()
    rows = Rows(1, 1025, file)
    meter = Meter(rows, 0, lambda: NOON + 70)
    ticket = meter.admit(ann)  # the seats of before are free, the minute is over, the day is not
    assert ticket
    with pytest.raises(RequestError, match="a day"):
        ticket.reserve(21)
    rows.close()
    rows = Rows(2, 1025, file)
    again = Meter(rows, 0, lambda: NOON + 71)
    for _ in range(3):
        assert again.admit(ann)
    with pytest.raises(RequestError, match="4 requests"):
        again.admit(ann)
    rows.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"cortex\x001" + b"\xff" * 60, b"cortex\x001" + bytes(9000)])
def test_a_file_that_is_not_ours_is_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "limits.map"
    file.write_bytes(content)
    host = Host(file)
    assert host.next().admit(ada(concurrent=1))
    host.rows.close()


def test_without_a_folder_limits_hold_all_the_same(tmp_path: Path) -> None:
    host = Host(tmp_path / "missing" / "limits.map")
    assert host.next().admit(ada(concurrent=1))
    refused(host, ada(concurrent=1))
    host.rows.close()


@given(st.lists(st.tuples(st.integers(0, PLACES - 1), st.floats(0, 20), st.integers(1, 50)), max_size=60))
def test_the_sum_is_that_of_a_plain_list(steps: list[tuple[int, float, int]]) -> None:
    rows, now, seen = Rows(PLACES, 2), NOON, []
    for place, wait_s, tokens in steps:
        now += wait_s
        rows.count(place, 1, 9, now, requests=1, tokens=tokens)
        seen.append((now, tokens))
        use = rows.use(1, 9, now)  # at each step: what is past is looked up once in a tick
        surely = [n for at, n in seen if at > now - 58]
        perhaps = [n for at, n in seen if at > now - 62]
        assert len(surely) <= use.requests <= len(perhaps)
        assert sum(surely) <= use.tokens <= sum(perhaps)
        assert use.today == sum(n for _, n in seen)
    rows.close()


def test_a_process_gets_a_place_that_no_running_one_has() -> None:
    seats = Seats(2, None)
    chosen = []
    for taken in ([], [0], [0, 1], [1, 2], list(range(6))):
        seats.choose(taken)
        chosen.append(seats.next_place)
    assert chosen == [0, 1, 2, 0, 5]
    seats.rows.close()
