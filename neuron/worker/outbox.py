"""What goes out: one Tokens message per step and gateway; what a held gateway cannot take is merged per job."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.codec import encode
from common.messages import (
    EVENT_FRAME,
    TOKENS_FRAME,
    Ended,
    EndedItem,
    Failed,
    FailedItem,
    FromWorker,
    JobKey,
    Started,
    StartedItem,
    TokenItem,
    TokenLogprob,
    Tokens,
)


@dataclass(slots=True)
class _Piece:
    at: int
    text: str
    ids: list[int]
    logprobs: list[TokenLogprob]


@dataclass(slots=True)
class _Mail:
    """What one gateway has not been sent yet."""

    is_held: bool = False
    started: list[StartedItem] = field(default_factory=list)
    tokens: dict[JobKey, _Piece] = field(default_factory=dict)
    ended: list[EndedItem] = field(default_factory=list)
    failed: list[FailedItem] = field(default_factory=list)


class Outbox:
    """Collects during a step; `flush` sends.

    A job's messages go in order: Started, Tokens, then Ended or Failed. An end is not held: it frees the job's place in
    the supervisor's book, so it goes at once with whatever text of its job had been merged.
    """

    def __init__(self, send: Callable[[str, bytes, bytes], bool]) -> None:
        """`send(gateway, kind, payload)` returns False where there is no room; it is tried again at the next flush."""
        self._send = send
        self._mail: dict[str, _Mail] = {}
        self._own: deque[bytes] = deque()

    def started(self, gateway: str, item: StartedItem) -> None:
        """A job has its slot."""
        self._of(gateway).started.append(item)

    def tokens(
        self, gateway: str, key: JobKey, at: int, text: str, ids: list[int], logprobs: Sequence[TokenLogprob] = ()
    ) -> None:
        """A job has new output."""
        tokens = self._of(gateway).tokens
        piece = tokens.get(key)
        if piece is None:
            tokens[key] = _Piece(at, text, ids, [*logprobs])
        else:
            piece.text += text
            piece.ids += ids
            piece.logprobs += logprobs

    def ended(self, gateway: str, item: EndedItem) -> None:
        """A job is complete."""
        self._of(gateway).ended.append(item)

    def failed(self, gateway: str, item: FailedItem) -> None:
        """A job ends with an error."""
        self._of(gateway).failed.append(item)

    def forget(self, gateway: str, key: JobKey) -> None:
        """Nobody waits for this job any more."""
        mail = self._mail.get(gateway)
        if mail is not None:
            mail.tokens.pop(key, None)
            mail.started = [i for i in mail.started if (i.job, i.attempt) != (key.job, key.attempt)]

    def hold(self, gateway: str) -> None:
        """Merge this gateway's tokens until `go`."""
        self._of(gateway).is_held = True

    def go(self, gateway: str) -> None:
        """Send this gateway its tokens again."""
        self._of(gateway).is_held = False

    def say(self, message: FromWorker) -> None:
        """Tell the supervisor itself."""
        self._own.append(encode(message))

    def pulse(self, message: FromWorker) -> None:
        """Tell the supervisor if it listens: the next pulse is as good. To be called after a flush."""
        if not self._own:
            self._send("", EVENT_FRAME, encode(message))

    def flush(self) -> bool:
        """Send what can be sent; False if something is left because there is no room."""
        for gateway, mail in list(self._mail.items()):
            if not self._flush_mail(gateway, mail):
                return False
            if not (mail.is_held or mail.tokens):
                del self._mail[gateway]
        while self._own:
            if not self._send("", EVENT_FRAME, self._own[0]):
                return False
            self._own.popleft()
        return True

    def _of(self, gateway: str) -> _Mail:
        mail = self._mail.get(gateway)
        if mail is None:
            mail = self._mail[gateway] = _Mail()
        return mail

    def _flush_mail(self, gateway: str, mail: _Mail) -> bool:
        if mail.started:
            if not self._send(gateway, EVENT_FRAME, encode(Started(items=mail.started))):
                return False
            mail.started = []
        if mail.tokens:
            keys = list(mail.tokens)
            if mail.is_held:
                over = {JobKey(i.job, i.attempt) for i in mail.ended} | {JobKey(i.job, i.attempt) for i in mail.failed}
                keys = [k for k in keys if k in over]
            pieces = [(k, mail.tokens[k]) for k in keys]
            items = [TokenItem(k.job, k.attempt, p.at, p.text, p.ids, p.logprobs) for k, p in pieces]
            if items and not self._send(gateway, TOKENS_FRAME, encode(Tokens(items=items))):
                return False
            for key in keys:
                del mail.tokens[key]
        if mail.ended:
            if not self._send(gateway, EVENT_FRAME, encode(Ended(items=mail.ended))):
                return False
            mail.ended = []
        if mail.failed:
            if not self._send(gateway, EVENT_FRAME, encode(Failed(items=mail.failed))):
                return False
            mail.failed = []
        return True
