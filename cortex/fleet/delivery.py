"""What has been received of a job over all its attempts, and whether an event of it may be believed. Pure."""

from enum import Enum

from common.messages import StartedItem, TokenItem


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
        """Whether the current attempt has begun."""
        self.first: StartedItem | None = None
        """The first attempt's beginning: the only one that is shown."""
        self.held = 0
        """Output tokens received, as the current attempt counts them."""
        self.last_words: list[TokenItem] = []
        """Text without ids, which only the end makes final: another attempt would say it again."""
        self._texts: list[str] = []
        self._ids: list[int] | None = []
        """Of the tokens held; None once they are of several vocabularies."""
        self._vocabulary = ""
        """Fingerprint that belongs to the ids."""

    @property
    def resume_text(self) -> str:
        """Return what the tokens held have said."""
        return "".join(self._texts)

    @property
    def resume_tokens(self) -> list[int]:
        """Return what another attempt continues from, as ids of `resume_vocabulary`."""
        return self._ids or []

    @property
    def resume_vocabulary(self) -> str:
        """Return whose ids they are; empty where only the text counts."""
        return "" if self._ids is None else self._vocabulary

    def judge_start(self, item: StartedItem) -> Verdict:
        """Take a Started."""
        if item.attempt != self.attempt:
            return Verdict.STALE
        if self.is_started:
            return Verdict.DUPLICATE
        self.is_started = True
        if self.first is None:
            self.first, self._vocabulary = item, item.vocab_fingerprint
        elif item.vocab_fingerprint != self._vocabulary:
            # Another model file continues: it has counted the text anew.
            self._ids = None
            self.held = item.resumed
        elif self._ids is not None and item.resumed != len(self._ids):
            return Verdict.GAP
        else:
            self.held = item.resumed
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
        if not item.ids:
            self.last_words.append(item)
            return Verdict.ACCEPT
        self.held += len(item.ids)
        self._texts.append(item.text)
        if self._ids is not None:
            self._ids += item.ids
        return Verdict.ACCEPT

    def judge_end(self, attempt: int, total: int) -> Verdict:
        """Take an Ended, which says how many tokens there are."""
        if attempt != self.attempt:
            return Verdict.STALE
        return Verdict.ACCEPT if self.is_started and total == self.held else Verdict.GAP

    def begin_attempt(self) -> int:
        """Give the present attempt up for another, and return its number."""
        self.attempt += 1
        self.is_started = False
        self.last_words.clear()
        return self.attempt
