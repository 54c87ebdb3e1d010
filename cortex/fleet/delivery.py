"""Whether an event of a job may be believed: the attempt must be current and no token missing. Pure."""

from enum import Enum

from common.messages import TokenItem


class Verdict(Enum):
    """What is to be done with an event."""

    ACCEPT = "next in line"
    DUPLICATE = "held already; drop it"
    STALE = "of an attempt that was given up; drop it, abort it at its sender"
    GAP = "something before it is missing; nothing after it can be used"


class Delivery:
    """What has been received of one job."""

    def __init__(self) -> None:
        self.attempt = 0
        """The current one; every event carries its own."""
        self.is_started = False
        self.held = 0
        """Output tokens received, over all attempts."""

    def judge_start(self, attempt: int) -> Verdict:
        """Take a Started."""
        if attempt != self.attempt:
            return Verdict.STALE
        if self.is_started:
            return Verdict.DUPLICATE
        self.is_started = True
        return Verdict.ACCEPT

    def judge_tokens(self, item: TokenItem) -> Verdict:
        """Take tokens, which must continue exactly where the ones before ended."""
        if item.attempt != self.attempt:
            return Verdict.STALE
        if not self.is_started or item.at > self.held:
            return Verdict.GAP
        if item.at < self.held:
            # One that overlaps only in part cannot be cut: its text does not say where each token ends.
            return Verdict.DUPLICATE if item.at + len(item.ids) <= self.held else Verdict.GAP
        self.held += len(item.ids)
        return Verdict.ACCEPT

    def judge_end(self, attempt: int, total: int) -> Verdict:
        """Take an Ended, which says how many tokens there are."""
        if attempt != self.attempt:
            return Verdict.STALE
        return Verdict.ACCEPT if self.is_started and total == self.held else Verdict.GAP

    def begin_attempt(self) -> int:
        """Give the present attempt up for another, and return its number."""
        self.attempt += 1
        return self.attempt
