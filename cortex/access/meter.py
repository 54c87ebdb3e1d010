"""Holds clients to their limits: a seat while a request runs, a count in the window, tokens promised and taken."""

import time
from collections.abc import Callable

from common.errors import Code, RequestError
from cortex.access.access import Identity
from cortex.access.key_file import MAX_KEYS
from cortex.access.keys import Limits
from cortex.access.rows import DAY_S, Rows, Use

ROWS = MAX_KEYS + 1
_ANONYMOUS = MAX_KEYS
"""The row of all who have no key, together."""
_MARK = 1 << 40
"""Makes an owner of every id another number than 0, which is nobody."""
CONCURRENT_WAIT_S = 1.0
"""Until a seat may be free; nobody knows how long the requests that hold them will take."""


class Ticket:
    """What one request has been granted. Kept until it has ended."""

    __slots__ = ("_charged", "_left", "_meter", "limits", "owner", "row")

    def __init__(self, meter: "Meter", row: int, owner: int, limits: Limits) -> None:
        self._meter = meter
        self.row = row
        self.owner = owner
        self.limits = limits
        self._left = 0
        """Tokens that are reserved and have not been taken."""
        self._charged = 0

    def reserve(self, tokens: int) -> None:
        """Promise tokens to this request: as many as it may take. Raises RequestError where a limit is in the way.

        One that wants more than its limits hold at all may run when nothing else was used.
        """
        caps = [c for c in (self.limits.tokens_per_minute, self.limits.tokens_per_day) if c is not None]
        if caps:
            tokens = min(tokens, *caps)
            self._meter.promise(self, tokens)
            self._left = tokens

    def charge(self, taken: int) -> None:
        """Count the tokens of prompt and answer; `taken`: all that the request has had so far."""
        fresh = taken - self._charged
        if fresh > 0:
            self._charged = taken
            covered = min(fresh, self._left)
            self._left -= covered
            self._meter.take(self, fresh, covered)

    def close(self) -> None:
        """Give the seat back, and what was promised and not taken."""
        self._meter.end(self, self._left)
        self._left = 0


class Meter:
    """One in each gateway process."""

    def __init__(self, rows: Rows, place: int, clock: Callable[[], float] = time.time) -> None:
        """`place`: of this process among all; the rows of it are written here only. `clock`: the wall's."""
        self._rows = rows
        self._place = place
        self._clock = clock

    def admit(self, identity: Identity) -> Ticket | None:
        """Grant one more request. None: this client has no limits. Raises RequestError where a limit is in the way."""
        limits = identity.limits
        if not limits:
            return None
        key = identity.key
        row, owner = (_ANONYMOUS, _MARK << 1) if key is None else (key.row, int(key.id, 16) | _MARK)
        now = self._clock()
        self._rows.take(self._place, row, owner)
        self._rows.count(self._place, row, owner, now, requests=1)
        error = self._refusal(limits, self._rows.use(row, owner, now), row, owner, now, room=1)
        if error is not None:
            self._rows.leave(self._place, row, owner)
            self._rows.count(self._place, row, owner, now, requests=-1)
            raise error
        return Ticket(self, row, owner, limits)

    def promise(self, ticket: Ticket, tokens: int) -> None:
        """Reserve tokens. Raises RequestError."""
        now = self._clock()
        self._rows.reserve(self._place, ticket.row, ticket.owner, tokens)
        use = self._rows.use(ticket.row, ticket.owner, now)
        error = self._refusal(ticket.limits, use, ticket.row, ticket.owner, now, room=0)
        if error is not None:
            self._rows.reserve(self._place, ticket.row, ticket.owner, -tokens)
            raise error

    def take(self, ticket: Ticket, tokens: int, covered: int) -> None:
        """Count tokens, of which `covered` had been reserved."""
        self._rows.count(self._place, ticket.row, ticket.owner, self._clock(), tokens=tokens)
        self._rows.reserve(self._place, ticket.row, ticket.owner, -covered)

    def end(self, ticket: Ticket, reserved: int) -> None:
        """Give back a seat, and reserved tokens."""
        self._rows.reserve(self._place, ticket.row, ticket.owner, -reserved)
        self._rows.leave(self._place, ticket.row, ticket.owner)

    def _refusal(self, limits: Limits, use: Use, row: int, owner: int, now: float, *, room: int) -> RequestError | None:
        """Return the error where a limit is passed, or has less than `room` tokens left."""
        if limits.concurrent is not None and use.seats > limits.concurrent:
            return _too_many(row, f"{limits.concurrent} requests at a time", CONCURRENT_WAIT_S)
        most = limits.requests_per_minute
        if most is not None and use.requests > most:
            return _too_many(row, f"{most} requests a minute", self._wait(row, owner, now, 1, use.requests - most))
        most = limits.tokens_per_minute
        if most is not None and use.tokens + use.reserved + room > most:
            excess = use.tokens + use.reserved + room - most
            return _too_many(row, f"{most} tokens a minute", self._wait(row, owner, now, 2, excess))
        most = limits.tokens_per_day
        if most is not None and use.today + use.reserved + room > most:
            return _too_many(row, f"{most} tokens a day", DAY_S - now % DAY_S)
        return None

    def _wait(self, row: int, owner: int, now: float, column: int, excess: float) -> float:
        """Return in how many seconds so much will have left the window. What is reserved may come back sooner."""
        wait_s = CONCURRENT_WAIT_S
        for leaves_s, *counts in self._rows.ticks(row, owner, now):
            if excess <= 0:
                break
            excess -= counts[column - 1]
            if counts[column - 1]:
                wait_s = leaves_s
        return wait_s


def _too_many(row: int, what: str, wait_s: float) -> RequestError:
    whose = "all together who have no key" if row == _ANONYMOUS else "this key"
    text = f"the limit of {whose} is {what}"
    return RequestError(Code.RATE_LIMIT_EXCEEDED, text, retriable=True, retry_after_s=wait_s)
