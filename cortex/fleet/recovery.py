"""Whether a job that its neuron does not run any more is tried again, and when. Pure.

A fault (a dead worker, a lost neuron, lost tokens) counts against the job, since the job itself may be the cause. A
refusal says something of one neuron only. Waiting for either is bounded in time; a token that arrives ends the wait.
"""

from enum import Enum

from common.errors import Code, RequestError

FAULTS = 8
"""Of one job without a token between them: neurons that do not find out what ends their workers."""
BACKOFF_S = 0.05
"""Before the second attempt since the last progress; doubles."""
LONGEST_BACKOFF_S = 2.0

_ELSEWHERE = frozenset({
    Code.BUSY, Code.NO_CAPACITY, Code.MODEL_NOT_FOUND, Code.MODEL_LOADING_FAILED, Code.MODEL_UNLOADED,
    Code.SHUTTING_DOWN, Code.DEVICE_UNAVAILABLE,
})  # fmt: skip


class Patience(RequestError):
    """Nothing takes the job now, but it is worth waiting: what has it may be back in a moment."""


class Kind(Enum):
    """What an error means for the next attempt."""

    REFUSAL = "this neuron cannot; the next candidate may well serve the job"
    FAULT = "it might have gone well; the same neuron may serve the job now"
    FINAL = "it is the request's own failure"


def classify(error: RequestError) -> Kind:
    """Return what a failed attempt means."""
    if error.code in _ELSEWHERE:
        return Kind.REFUSAL
    return Kind.FAULT if error.retriable else Kind.FINAL


class Recovery:
    """The attempts of one job."""

    def __init__(self) -> None:
        self.since: float | None = None
        """When the trouble began that no token has ended yet; monotonic seconds."""
        self.cause: RequestError | None = None
        """What it began with: told to the client if nothing helps."""
        self._faults = 0
        self._attempts = 0

    def note_fault(self) -> bool:
        """Count a fault; False if it was one too many."""
        self._faults += 1
        return self._faults < FAULTS

    def next_delay(self, error: RequestError, now: float, limit_s: float) -> float | None:
        """Return the seconds to wait before the next attempt; None if it has been tried for `limit_s`."""
        if self.since is None:
            self.since, self.cause, self._attempts = now, error, 0
        if now - self.since >= limit_s:
            return None
        self._attempts += 1
        return 0.0 if self._attempts == 1 else min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (self._attempts - 2))

    def end(self) -> None:
        """The job goes on."""
        self.since = None
        self._faults = 0
